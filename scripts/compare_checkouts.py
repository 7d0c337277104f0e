#!/usr/bin/env python
"""Run the same command lines in two checkouts of this project and compare what comes of them.

    python scripts/compare_checkouts.py OLD NEW [--work DIR] [--only NAME ...] [--jobs N]

Each case runs in a folder of its own below DIR, where it stays, by the checkout's commit (and its
changes to tracked files), so that a second call runs only what is missing. Left out are times,
paths, commits and the content of pictures. Exit status: 0; 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from difflib import ndiff
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import torch

# Differences that are wanted: (case, file, key, why); the first three are patterns of fnmatch.
KEYS = "new keys: record (a GIF of an evaluation), use_wandb and its three"
PLUGIN = "the plugin is an installed package: other files, other words"
EXPECTED: list[tuple[str, str, str, str]] = [
    *[("*", "*.json", f"*{key}", KEYS) for key in ("record", "use_wandb", "wandb_*")],
    ("print_config_*", "*", "text", KEYS),
    ("*", "*.lock", "exists", "a lock file goes with its last holder"),
    ("rebuild_smax", "*.json", "*.raw.returns", "20.0 stays 20.0, as it is committed"),
    ("*", "*.json", "*.tests*", "every test point of a run is kept in the raw files"),
    ("*_inspo*", "*", "text", "the fit of the others' policy tells how far it is"),
    ("help", "*", "text", f"{PLUGIN}; --force replaces datasets of ours alone"),
    ("errors_tools", "18.err", "text", PLUGIN),
    *[("errors_tools", f"{k}.err", "text", "--jobs stands beside --backend") for k in ("08", "10")],
    ("dataset_tool", "17.out", "text", "a line stands below the header of every table"),
    ("wrong_checkpoint", "01.err", "text", "torch says what does not fit"),
]

# --------------------------------------------------------------------------------------------------
# What is run: `NAME FLAG ... :: COMMAND`, further commands below. {case} is the case's folder,
# {root} the checkout. Flags: smax, with the data of the case smax_data; policy, with a shipped
# policy; FILE.json, with that file of results/; failing: its commands are wrong ones.
# `main ALG ENV OUT KEY=VALUE ...` is a run of main.py with a short test, its results in OUT;
# MODEL:OUT is the model folder in there; STOP: with SIGTERM once a checkpoint stands; a|b: each.

OFFLINE = (
    "inspo", "awr", "bc", "bc_filter", "omar", "cfcql", "macql", "omiga", "alberdice", "icq",
    "iql", "awac", "td3bc", "qmix_cql", "idqn_cql", "comadice", "oryx",
)  # fmt: skip
FIT = "behaviour.updates=10"
SHORT_FITS = {"inspo": f"{FIT} behaviour.others_updates=10", "awr": FIT, "cfcql": FIT}
SHORT_TESTS = "test_nepisode=8 final_test_nepisode=8"
TRAINING = {
    "matrix": "t_max=512 batch_size=64 log_interval=128 test_interval=256",
    "bridge": "t_max=1500 batch_size=16 log_interval=300 test_interval=800 quality=mixed",
    "smax": "t_max=1500 batch_size=4 log_interval=300 test_interval=800 map_name=2s3z",
}
ONLINE = {
    "qmix matrix": "t_max=320 batch_size=32",
    "mappo matrix": "t_max=320",
    "qmix smax": "map_name=2s3z t_max=5000 batch_size=16 buffer_size=96",
    "mappo smax": "map_name=2s3z t_max=5000",
}
CUT = {  # runs that are stopped and go on
    "inspo bridge_offline": "t_max=12000 batch_size=8 " + SHORT_FITS["inspo"],
    "qmix matrix": "t_max=6400 batch_size=32 buffer_size=500",
}
TINY = f"t_max=192 batch_size=32 {SHORT_TESTS} datasets_dir={{case}}/data"
TINY_FITS = f"{TINY} {SHORT_FITS['inspo']}"
TINY_SMAX = f"{TINY_FITS} t_max=500 batch_size=4"
FILL = "--fill --results {case}/out"
ONE = "--seeds 1 --jobs 1 --results {case}/out --with"
SMAX_FILE = "data/smax/2s3z_medium.h5"

CASES = f"""\
smax_data policy :: main qmix smax results map_name=2s3z quality=medium collect.n_episodes=64 \
 checkpoint_path=MODEL:policy
reproduce_figure5 :: reproduce figure5 {ONE} {TINY_FITS}
dataset_tool smax :: dataset validate|inspect {{case}}/{SMAX_FILE}
  dataset inspect {{case}}/{SMAX_FILE} --json --plot {{case}}/picture.png
  dataset subsample {{case}}/{SMAX_FILE} {{case}}/some.h5 --episodes 10 --seed 1
  dataset subsample {{case}}/{SMAX_FILE} {{case}}/best.h5 --quantiles 0.75 1 --quality best
  dataset subsample {{case}}/{SMAX_FILE} {{case}}/lost.h5 --returns 0 15 --lost
  dataset mix {{case}}/best.h5:0.5 {{case}}/some.h5:0.5 {{case}}/mixed.h5
  dataset mix {{case}}/best.h5:3 {{case}}/some.h5:5 {{case}}/mixed_n.h5 --seed 2
  dataset split {{case}}/{SMAX_FILE} {{case}}/train.h5 {{case}}/held.h5 --held-out 0.2
  dataset convert {{case}}/some.h5 {{case}}/vault.vlt/Some
  dataset convert {{case}}/vault.vlt/Some {{case}}/back.h5 --env smax --episode-limit 101
  dataset convert {{case}}/some.h5 {{case}}/folder --to alberdice
  dataset convert {{case}}/folder {{case}}/again.h5 --env smax --map-name 2s3z
  dataset validate|inspect {{case}}/vault.vlt/Some|{{case}}/folder
  dataset list --datasets-dir {{case}}/data
wrong_checkpoint failing :: main bc matrix_offline results t_max=512 use_presets=False batch_size=64
  main bc bridge_offline tested evaluate=True checkpoint_path=MODEL:results
  main bc matrix_offline results resume=MODEL:results t_max=256
rebuild_paper paper/table1.json paper/table2.json paper/table3.json paper/figure3.json :: \
 reproduce table1|table2|table3|figure3 {FILL}
rebuild_smax smax/2s3z.json smax/table6.json :: reproduce smax --maps 2s3z --qualities medium {FILL}
  reproduce table6 --on smax {FILL}
reproduce_table1 :: reproduce table1 --algs bc inspo {ONE} {TINY_FITS}
reproduce_table2 :: reproduce table2 --algs alberdice cfcql {ONE} {TINY} {FIT}
reproduce_table3 :: reproduce table3 --algs bc {ONE} {TINY} t_max=6000
reproduce_figure3 :: reproduce figure3 --algs bc omar {ONE} {TINY}
reproduce_paths :: reproduce paths {ONE} {TINY_FITS}
reproduce_bridge :: reproduce bridge --algs bc {ONE} {TINY} t_max=60000 final_test_nepisode=96
reproduce_main_job smax :: reproduce main_job {ONE} {TINY_SMAX}
reproduce_table6 smax :: reproduce table6 --on smax --qualities medium {ONE} {TINY_SMAX}
sweep_report :: sweep {{case}}/grid.yaml --results {{case}}/out --jobs 1 --dry-run
  sweep {{case}}/grid.yaml --results {{case}}/out --jobs=1|--list
  sweep sweeps/smax.yaml|sweeps/sc2.yaml --results {{case}}/x --list
  report {{case}}/out/runs/tiny --out {{case}}/report --reps 200
  report {{case}}/out/runs/tiny --out {{case}}/report_2 --metric test_return_mean --title Mine \
 --group-by name lr --normalise none --digits 3 --reps 200
errors_tools failing :: dataset
  dataset inspect|validate /nowhere/data.h5|{{root}}/README.md
  dataset download nobody/nothing
  dataset mix /nowhere/data.h5:2.5 {{case}}/out.h5
  dataset split /nowhere/data.h5 {{case}}/a.h5 {{case}}/b.h5 --held-out 2
  reproduce table9|figure5 --results {{case}}/out --algs bc
  reproduce table1 --results {{case}}/out --seeds=0|--maps=2s3z|--algs=qmix|--with=no_key=1
  report /nowhere/results --out {{case}}/out
  sweep /nowhere/grid.yaml|{{root}}/README.md|{{root}}/docker/compose.yaml --list
  plugin status /nowhere/epymarl
errors_main failing :: main inspoo|bc smaxx|bridge results t_max=10
  main bc matrix_offline results t_maxx=1|t_max=abc|t_max=-1|lr=-1.0|runner=fast|use_cuda=maybe| \
 env_args.walls=1|seed|dataset.path=/nowhere/data.h5|dataset.path={{root}}/README.md
  main bc matrix_offline results resume=/nowhere/run|evaluate=True
  main bc matrix_offline results evaluate=True checkpoint_path=/nowhere/run|checkpoint_path={{case}}
  main bc smax_offline results map_name=2s4z|quality=meduim
  main bc|qmix sc2_offline|matrix|sc2 results t_max=10
  main qmix matrix results collect.n_episodes=3 checkpoint_path=/nowhere/run
  main mappo matrix results batch_size_run=16 t_max=10
help :: main|reproduce|report|sweep|plugin|dataset --help
  plugin install|status|remove --help
  dataset list|download|convert|validate|inspect|mix|subsample|split|collect --help
"""
GRID = (
    "# A grid.\nfolder: tiny\nalgorithms: [bc, omiga]\nenvironments: matrix_offline\nseeds: 2\n"
    "overrides: {t_max: 192, batch_size: 32, test_nepisode: 8, datasets_dir: CASE/data}\n"
)


class Case(NamedTuple):
    """Commands that run one after the other in a folder of their own."""

    name: str
    flags: list[str]
    commands: list[list[str]]


def all_cases() -> list[Case]:
    """The cases of the text above, and those of every algorithm and environment."""
    text = CASES
    for pair, words in CUT.items():
        words += " save_model_interval=1600 keep_checkpoints=0 test_interval=30000"
        text += f"resume_{pair.split()[0]} :: main {pair} whole {words}\n"
        text += f" STOP main {pair} cut {words}\n main {pair} cut {words} resume=MODEL:cut\n"
    for env, words in TRAINING.items():
        for alg in OFFLINE:
            text += f"train_{alg}_{env} {'smax' if env == 'smax' else ''} :: "
            text += f"main {alg} {env}_offline results {words} {SHORT_FITS.get(alg, '')}\n"
    for pair, words in ONLINE.items():
        policy = f"{words} checkpoint_path=MODEL:results"
        text += f"train_{pair.replace(' ', '_')} :: main {pair} results {words} log_interval=100\n"
        text += f" main {pair} tested evaluate=True {policy}\n"
        text += f" main {pair} rolled collect.n_episodes=16 collect.path={{case}}/it.h5 {policy}\n"
    each = "|".join(f"--env-config={env}|--env-config={env}_offline" for env in (*TRAINING, "sc2"))
    for alg in (*OFFLINE, "qmix", "mappo"):
        text += f"print_config_{alg} :: main.py print_config --config={alg} {each}\n"
    cases: list[Case] = []
    for line in text.splitlines():
        head, found, line = line.rpartition(" :: ")
        cases += [Case(head.split()[0], head.split()[1:], [])] if found else []
        words = [word.split("|") for word in re.sub(r"\| +", "|", line).split()]
        cases[-1].commands.extend(map(list, itertools.product(*words)))
    return cases


def command_line(command: list[str], case: Path, root: Path) -> list[str]:
    """The words after `python` of a command in the form above."""
    words = command[1:] if command[0] == "STOP" else command
    if words[0] == "main" and words[1] != "--help":
        alg, env, out, *rest = words[1:]
        words = ["main.py", f"--config={alg}", f"--env-config={env}", "with", "seed=0"]
        words += [f"local_results_path={{case}}/{out}", "datasets_dir={case}/data"]
        words += ["use_progress_bar=False", *SHORT_TESTS.split(), *rest]
    words = [f"src/{words[0].removesuffix('.py')}.py", *words[1:]]
    filled = []
    for word in words:
        word = word.replace("{case}", str(case)).replace("{root}", str(root))
        head, found, out = word.partition("MODEL:")
        models = sorted((case / out / "models").glob("*")) if found else []
        filled.append(head + str(models[-1]) if models else word)
    return filled


# --------------------------------------------------------------------------------------------------
# Running


class Checkout:
    """A checkout, and the folder in which its cases lie."""

    def __init__(self, root: Path, work: Path):
        self.root = root.resolve()
        self.commit = self.git("rev-parse", "HEAD").strip()
        changes = self.git("diff", "HEAD")
        key = "dirty_" + hashlib.sha256(changes.encode()).hexdigest()[:6]
        self.cases = work.resolve() / (key if changes else self.commit[:12])

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", self.root, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{self.root}: {done.stderr.strip()}")
        return done.stdout

    def statuses(self, case: Case) -> list[Any] | None:
        """The exit statuses of its commands; None if it was not run as it stands here."""
        path = self.cases / case.name / "done.json"
        done = json.loads(path.read_text()) if path.exists() else {}
        return done["statuses"] if done.get("case") == [case.flags, case.commands] else None

    def prepare(self, case: Case) -> Path:
        """An empty folder with what the case's commands read."""
        folder = self.cases / case.name
        shutil.rmtree(folder, ignore_errors=True)
        inputs = {f"out/{f}": self.root / "results" / f for f in case.flags if f.endswith("json")}
        if "smax" in case.flags:
            inputs[SMAX_FILE] = self.cases / "smax_data" / SMAX_FILE
        if "policy" in case.flags:
            found = self.git("ls-files", "*smax/2s3z/qmix_medium/agent.th").strip()
            inputs["policy/models/shipped/1/agent.th"] = self.root / found
        for name, source in inputs.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
            if name.endswith("agent.th"):  # a checkpoint as users have them
                weights = source.read_bytes()
                entry = {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
                text = {"format_version": 1, "step": 1, "alg": "qmix", "files": {"agent.th": entry}}
                (folder / name).with_name("manifest.json").write_text(json.dumps(text))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "grid.yaml").write_text(GRID.replace("CASE", str(folder)))
        return folder


def run_case(checkout: Checkout, case: Case, python: str, environment: dict[str, str]) -> None:
    """Run a case's commands; what they print lies in `NN.out` and `NN.err`."""
    folder = checkout.prepare(case)
    statuses: list[Any] = []
    for k, command in enumerate(case.commands):
        words = command_line(command, folder, checkout.root)
        with open(folder / f"{k:02}.out", "w") as out, open(folder / f"{k:02}.err", "w") as err:
            place = {"cwd": checkout.root, "env": environment, "stdin": subprocess.DEVNULL}
            child = subprocess.Popen([python, *words], stdout=out, stderr=err, **place)
            if command[0] == "STOP":
                while child.poll() is None and not list(folder.glob("cut/models/*/[0-9]*[0-9]")):
                    time.sleep(0.02)
                child.send_signal(signal.SIGTERM)
            try:
                statuses.append(child.wait(600))
            except subprocess.TimeoutExpired:
                child.kill()
                statuses.append("killed after 600 s")
    done = {"case": [case.flags, case.commands], "statuses": statuses}
    (folder / "done.json").write_text(json.dumps(done))


def run_all(checkout: Checkout, cases: list[Case], options: argparse.Namespace) -> None:
    """Run the cases that are missing, several at a time; smax_data first, which others read."""
    environment = os.environ | {"COLUMNS": "100", "CUDA_VISIBLE_DEVICES": ""}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(options.work.resolve() / "jax_cache")
    missing = [case for case in cases if options.fresh or checkout.statuses(case) is None]
    print(f"{checkout.root}: {len(missing)} of {len(cases)} cases to run in {checkout.cases}")
    jobs: dict[str, Future] = {}
    begin = time.monotonic()

    def work(case: Case) -> None:
        if "smax" in case.flags and "smax_data" in jobs:
            jobs["smax_data"].result()
        start = time.monotonic()
        run_case(checkout, case, options.python, environment)
        count, now = sum(job.done() for job in jobs.values()) + 1, time.monotonic()
        print(f"{now - begin:.0f} s [{count}/{len(missing)}] {case.name}: {now - start:.0f} s")

    with ThreadPoolExecutor(options.jobs) as pool:
        for case in missing:
            jobs[case.name] = pool.submit(work, case)
    list(map(Future.result, jobs.values()))  # raises what they raised


# --------------------------------------------------------------------------------------------------
# What came of it: {file: {key: value}}

# Keys of JSON files and of saved states, and columns of tables, that hold times and the like.
VOLATILE = {"seconds", "hours", "minutes a run", "timestamps", "updates_per_second"}
VOLATILE |= {"minutes", "git_commit", "commit", "machine", "sha256"}
MASKS = [
    (re.compile(r"\S+/site-packages/"), "SITE/"),
    (re.compile(r"(\d{4}-\d\d-\d\d[T_ ]|\b)\d\d[:-]\d\d[:-]\d\d([.,]\d+)?(_\d+)?"), "TIME"),
    (re.compile(r"(?m)^(\S+ +finished .*) [\d.]+$"), r"\1 MINUTES"),
    (re.compile(r"updates_per_second: +\S+"), "updates_per_second: N"),
    (re.compile(r"[\d.]+[kM]?/s, [\d:]+ left"), "N/s, TIME left"),
    (re.compile(r"[\d.,]+ hours of one core"), "N hours of one core"),
]
RESUMED = "a stopped run against a whole one"


def facts_of(checkout: Checkout, case: Case) -> dict[str, dict[str, Any]]:
    """All that is compared of a case."""
    folder, statuses = checkout.cases / case.name, checkout.statuses(case)
    facts = {"exit status": dict(zip(map(" ".join, case.commands), statuses))}
    # What they print has progress bars, or where a run was stopped.
    noisy = set() if "failing" in case.flags else {"reproduce", "sweep", "cut"}
    quiet = {f"{k:02}.err" for k, words in enumerate(case.commands) if noisy & {*words}}
    quiet.add("log.txt")

    def mask(text: str) -> str:
        for path, word in ((folder, "CASE"), (checkout.cases, "CASES"), (checkout.root, "ROOT")):
            text = text.replace(str(path), word)
        text = re.sub(rf"{checkout.commit[:10]}[0-9a-f]*(-dirty)?", "COMMIT", text)
        for pattern, word in MASKS:
            text = pattern.sub(word, text)
        return text

    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name.startswith(("cut/", "policy/", "vault.vlt")) or name in ("grid.yaml", "done.json"):
            continue
        unread = path.suffix in (".png", ".pdf", ".gif", ".lock") or path.name in quiet
        facts[mask(name)] = {"exists": True} if unread else dict(content(path, mask))
    if (folder / "cut").is_dir():
        whole, cut = last_of(folder / "whole", mask), last_of(folder / "cut", mask)
        facts[RESUMED] = {k: cut.get(k) == whole[k] for k in whole}
    return facts


def last_of(results: Path, mask) -> dict[str, Any]:
    """The last weights and the last result below a folder of results."""
    found = (results.glob(pattern) for pattern in ("models/*/[0-9]*", "sacred/*/*/[0-9]*"))
    step, run = (max(paths, key=lambda path: int(path.name)) for paths in found)
    files = [step / "agent.th", step / "learner.th", run / "run.json"]
    return {path.name: dict(content(path, mask)) for path in files}


def content(path: Path, mask) -> Iterator[tuple[str, Any]]:
    """(key, value) of what is in a file."""
    if path.suffix == ".th":
        yield from flat(torch.load(path, map_location="cpu", weights_only=True))
    elif path.suffix == ".h5":
        with h5py.File(path) as file:
            found = {"attributes": dict(file.attrs), **{k: file[k][()] for k in file}}
            yield from ((key, mask(value)) for key, value in flat(found))
    elif path.suffix == ".json" and path.stat().st_size:
        found = json.loads(mask(path.read_text()))
        if path.name == "run.json":
            found = {key: found.get(key) for key in ("status", "result")}
        yield from flat(found)
    elif path.suffix == ".csv":
        for number, row in enumerate(csv.DictReader(mask(path.read_text()).splitlines())):
            yield from flat({f"row {number}": row})
    elif path.suffix in (".md", ".txt", ".out", ".err"):
        yield "text", without_columns(mask(path.read_text()).splitlines())
    else:
        yield "sha256 of the bytes", hashlib.sha256(path.read_bytes()).hexdigest()


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings and lists; arrays and tensors as their hash."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if str(name) not in VOLATILE:
                yield from flat(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple) and any(
        isinstance(inner, Mapping | list) or hasattr(inner, "dtype") for inner in value
    ):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{key}[{number}]")
    elif hasattr(value, "dtype"):
        array = value.contiguous().numpy() if hasattr(value, "contiguous") else value
        value = array.item() if array.size == 1 else hashlib.sha256(array.tobytes()).hexdigest()
        yield key, f"{array.dtype}{list(array.shape)} {value}"
    else:
        yield key, repr(value)


def without_columns(lines: list[str]) -> list[str]:
    """The lines of a text; a Markdown table's without padding and without volatile columns."""
    result, header = [], None
    for line in lines:
        cells = [re.sub("-+", "-", cell.strip()) for cell in line.strip("|").split(" | ")]
        header = (header or cells) if line.startswith("|") else None
        kept = [cell for name, cell in zip(header or (), cells) if name not in VOLATILE]
        result.append(" | ".join(kept) if header else line)
    return result


def differences(case: Case, old: Mapping, new: Mapping) -> Iterator[tuple[str, str, Any, Any]]:
    """(file, key, old value, new value) of all that is not equal, or not as it was meant in old."""
    for command, status in old["exit status"].items():
        if "failing" not in case.flags and status != (143 if command.startswith("STOP") else 0):
            yield "exit status", command, status, "should work"
    yield from ((RESUMED, k, v, True) for k, v in old.get(RESUMED, {}).items() if not v)
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            yield name, "exists", name in old, name in new
            continue
        for key in sorted(old[name].keys() | new[name].keys()):
            before, after = (facts[name].get(key, "not there") for facts in (old, new))
            if before != after and isinstance(before, list) and isinstance(after, list):
                changed = [line for line in ndiff(before, after) if line[0] in "-+"]
                before, after = ([x[2:] for x in changed if x[0] == sign] for sign in "-+")
            if before != after:
                yield name, key, before, after


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    place = Path(tempfile.gettempdir()) / "compare_checkouts"
    parser.add_argument("--work", type=Path, default=place, help=f"where cases lie ({place})")
    parser.add_argument("--new-work", type=Path, help="another place for NEW's")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cases; may have *")
    parser.add_argument("--python", default=sys.executable, help="that of the environment")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (2)")
    parser.add_argument("--fresh", action="store_true", help="run finished cases again")
    options = parser.parse_args(argv)
    wanted = ["smax_data", *(options.only or "*")]  # others read its data
    cases = [case for case in all_cases() if any(fnmatch(case.name, name) for name in wanted)]
    old = Checkout(options.old, options.work)
    new = Checkout(options.new, options.new_work or options.work)
    for checkout in (old, new):
        checkout.cases.mkdir(parents=True, exist_ok=True)
        with open(checkout.cases / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits for another call that runs cases there
            run_all(checkout, cases, options)
    rows = []
    for case in cases:
        before, after = facts_of(old, case), facts_of(new, case)
        for difference in differences(case, before, after):
            row = (case.name, *difference)
            whys = [why for *patterns, why in EXPECTED if all(map(fnmatch, row, patterns))]
            rows.append((f"expected ({whys[0]})" if whys else "not expected", *row))
    for what, case, file, key, a, b in sorted(rows, key=lambda row: row[0]):
        print(f"{what}: {case}, {file}, {key}\n  old: {str(a)[:600]}\n  new: {str(b)[:600]}")
    differing = {row[1] for row in rows if row[0] == "not expected"}
    print(f"{len(cases)} cases, {len(differing)} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
