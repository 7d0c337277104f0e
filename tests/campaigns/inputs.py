"""Mutated datasets of every format, and mutated checkpoints: a clear error, or unchanged data.

Small files that the program wrote, and foreign ones of the same layouts, get flipped, lost, doubled
and foreign bytes, other dtypes and shapes, doctored attributes and manifests, and files that are
swapped or missing or never end. Each is then read as a run reads it. Fine are

- `refused`: one UserError that names the path;
- `unchanged`: the data or the weights are those that were written;
- `valid`: what a foreign file says is taken as it is, if it obeys the rules; and so is what was
  doctored in a checkpoint together with its hash, if it is built as the run needs it.

`faults` are all else: another exception, other data, a crash, or no answer within 20 seconds.

    python tests/campaigns/inputs.py --minutes 20 --seed 1
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from common import ROOT, parser, report, same, tries, warm_up

sys.path.insert(0, str(ROOT / "tests"))

from cases import build, random_batch
from test_dataset import make_dataset
from test_formats import write_alberdice, write_cfcql

from inspo.offline import load_dataset, write_dataset
from inspo.offline.formats import alberdice, folders, vault
from inspo.utils.checkpoints import get_random_states, load_checkpoint, put_back, save_checkpoint
from inspo.utils.errors import UserError
from inspo.utils.files import sha256

CHUNK = 250  # tries in one process: what a library has kept of one does not reach them all
PATIENCE = 20  # seconds for one answer
ODD = (
    None, True, -1, 0, 1, 2, 2**31, 2**63, 10**30, 0.5, -0.0, float("nan"), float("inf"), "", "x",
    "1", "x" * 1000, "\x1b[2J", "../../x", "/dev/zero", "\0", "null", [], [1], ["x"], {}, {"x": 1},
    [[[]]],
)  # fmt: skip
DTYPES = ("i1", "u1", "i2", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i8", "?", "c8", "S3")
Random = np.random.Generator

# --------------------------------------------------------------------------------------------------
# What is written, and how it is read


def write_all(folder: Path) -> None:
    data = make_dataset((3, 7, 1, 5))
    write_dataset(folder / "ours.h5", data)
    alberdice.write(folder / "ours_folder", data)
    vault.write(folder / "ours.vlt", data)
    padded = data.episodes(np.arange(len(data)), n_steps=8)
    write_cfcql(folder / "foreign.h5", padded)
    write_alberdice(folder / "foreign_folder", padded)
    shutil.copytree(folder / "ours.vlt", folder / "foreign.vlt")
    meta = folder / "foreign.vlt" / "metadata.json"
    content = json.loads(meta.read_text())
    content.pop(folders.KEY)
    meta.write_text(json.dumps(content))
    for number in (1, 2):
        learner, _, _ = build("bc")
        for update in range(number):
            learner.train(random_batch([4, 1]), update, 0)
        entries = {"agent.th": learner.mac.agent.state_dict(), "learner.th": learner.state_dict()}
        entries["run.th"] = {"random": get_random_states()}
        save_checkpoint(
            folder / "checkpoint", number, entries, {"alg": "bc", "config": {"seed": 1}}
        )


def read_dataset(path: Path) -> Any:
    data = load_dataset(path)
    return {"rows": data.arrays, "lengths": data.lengths, "won": data.battle_won}


def read_checkpoint(path: Path) -> Any:
    saved = load_checkpoint(path, 2, expect={"alg": "bc"})
    learner, _, _ = build("bc")
    put_back(learner.mac.agent, saved.entry("agent.th"), saved.folder / "agent.th")
    put_back(learner, saved.entry("learner.th"), saved.folder / "learner.th")
    return learner.state_dict()


KINDS: dict[str, Callable[[Path], Any]] = {
    name: read_dataset
    for name in (
        *("ours.h5", "ours_folder", "ours.vlt"),
        *("foreign.h5", "foreign_folder", "foreign.vlt"),
    )
}
KINDS["checkpoint"] = read_checkpoint

# --------------------------------------------------------------------------------------------------
# Mutations: each changes one file below `path` and says how


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())


def change_bytes(path: Path, rng: Random) -> str:
    file = pick(files_of(path), rng)
    content = bytearray(file.read_bytes())
    size = len(content)
    at = int(rng.integers(0, max(size, 1)))
    length = int(rng.integers(1, 65))
    how = str(rng.choice(["flip", "truncate", "insert", "delete", "zero", "double", "noise"]))
    if how == "flip":
        for _ in range(int(rng.integers(1, 4)) if size else 0):
            content[int(rng.integers(0, size))] ^= 1 << int(rng.integers(0, 8))
    elif how == "truncate":
        del content[at:]
    elif how == "delete":
        del content[at : at + length]
    elif how == "insert":
        content[at:at] = rng.bytes(length)
    elif how == "double":
        content[at:at] = content[at : at + length]
    else:
        n = len(content[at : at + length])
        content[at : at + length] = bytes(n) if how == "zero" else rng.bytes(n)
    file.write_bytes(content)
    return f"{how} at {at} in {file.name}"


def change_file(path: Path, rng: Random) -> str:
    files = files_of(path)
    file, other = pick(files, rng), pick(files, rng)
    how = str(
        rng.choice(["missing", "empty", "folder", "endless", "pipe", "loop", "swap", "pickle"])
    )
    if how == "swap" and other != file:
        content = file.read_bytes()
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return f"swap {file.name} and {other.name}"
    file.unlink()
    if how == "empty":
        file.touch()
    elif how == "folder":
        file.mkdir()
    elif how == "endless":
        file.symlink_to("/dev/zero")
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "loop":
        file.symlink_to(file.name)
    elif how == "pickle":
        file.write_bytes(pickle.dumps({"a": 1}))
    return f"{how} {file.name}"


def change_json(path: Path, rng: Random) -> str:
    files = [file for file in files_of(path) if file.suffix == ".json"]
    if not files:
        return change_bytes(path, rng)
    file = pick(files, rng)
    content = json.loads(file.read_text())
    place = change_leaf(content, rng)
    file.write_text(json.dumps(content))
    return f"{place} in {file.name}"


def change_leaf(content: Any, rng: Random) -> str:
    """Replace, remove or add something at a random place of nested dictionaries and lists."""
    places = list(containers(content))
    inside, name = places[int(rng.integers(0, len(places)))]
    keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
    odd = ODD[int(rng.integers(0, len(ODD)))]
    how = str(rng.choice(["set", "set", "set", "remove", "add"]))
    if how == "add" and isinstance(inside, dict):
        inside["odd"] = odd
    elif keys:
        key = keys[int(rng.integers(0, len(keys)))]
        name = f"{name}.{key}"
        if how == "remove":
            del inside[key]
        else:
            inside[key] = odd
    return f"{how} {name} {odd!r:.30}"


def containers(content: Any, name: str = "") -> Iterator[tuple[Any, str]]:
    if isinstance(content, dict | list):
        yield content, name
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, item in items:
            yield from containers(item, f"{name}.{key}")


def change_arrays(path: Path, rng: Random) -> str:
    """Another dtype, shape or kind of an array, or an odd attribute."""
    if path.suffix == ".h5":
        return change_hdf5(path, rng)
    arrays = [file for file in files_of(path) if file.suffix == ".npy"]
    if not arrays:
        return change_json(path, rng)
    file = pick(arrays, rng)
    array, how = reshaped(np.load(file), rng)
    np.save(file, array)
    return f"{how} of {file.name}"


def change_hdf5(path: Path, rng: Random) -> str:
    with h5py.File(path, "r+") as file:
        if len(file.attrs) and rng.random() < 0.5:
            key = pick(list(file.attrs), rng)
            odd = pick([v for v in ODD if isinstance(v, bool | int | float | str)], rng)
            del file.attrs[key]
            if rng.random() < 0.8:
                try:
                    file.attrs[key] = odd
                except (OverflowError, ValueError, TypeError):  # HDF5 has no such thing
                    file.attrs[key] = np.array([odd == odd, True])
            return f"attribute {key} {odd!r:.30}"
        key = pick(list(file), rng)
        array, how = reshaped(file[key][...], rng)
        del file[key]
        if rng.random() < 0.1:
            file.create_group(key)
        elif rng.random() < 0.1:
            file[key] = h5py.SoftLink("/nowhere")
        elif rng.random() < 0.1:
            file[key] = h5py.ExternalLink("/dev/zero", "/x")
        else:
            file[key] = array
        return f"{how} of {key}"


def reshaped(array: np.ndarray, rng: Random) -> tuple[np.ndarray, str]:
    how = str(rng.choice(["dtype", "scalar", "axis", "cut", "more", "swap", "value", "none"]))
    with np.errstate(all="ignore"):
        if how == "dtype":
            dtype = str(rng.choice(DTYPES))
            return array.astype(dtype), f"dtype {dtype}"
        if how == "scalar":
            return np.asarray(array.reshape(-1)[0]), how
        if how == "axis":
            return array[None] if rng.random() < 0.5 else array[0], how
        if how == "cut":
            return array[: max(len(array) - 1, 0)], how
        if how == "more":
            return np.concatenate([array, array[:1]]), how
        if how == "swap" and array.ndim > 1:
            return np.swapaxes(array, 0, 1), how
        if how == "none":
            return array[:0], how
        changed = array.copy()
        changed.reshape(-1)[int(rng.integers(0, array.size))] = rng.choice([-1, 0, 2, 77])
    return changed, "value"


def change_entry(path: Path, rng: Random) -> str:
    """Doctor a checkpoint's entry, together with its hash."""
    files = [file for file in files_of(path) if file.suffix == ".th"]
    if not files:
        return change_arrays(path, rng)
    file = pick(files, rng)
    content = torch.load(file, weights_only=True)
    content = dict(content) if isinstance(content, dict) else content
    place = change_leaf(content, rng) if rng.random() < 0.9 else "all"
    torch.save(ODD[int(rng.integers(0, len(ODD)))] if place == "all" else content, file)
    accept(file)
    return f"{place} in {file.name}, with its hash"


def swap_entries(path: Path, rng: Random) -> str:
    """Give a checkpoint another one's file, or another file of its own, with its hash."""
    files = [file for file in files_of(path) if file.suffix == ".th"]
    if not files:
        return change_file(path, rng)
    file, other = pick(files, rng), pick(files, rng)
    shutil.copyfile(other, file) if other != file else None
    accept(file)
    return f"{other.parent.name}/{other.name} as {file.parent.name}/{file.name}, with its hash"


def accept(file: Path) -> None:
    manifest = file.parent / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"][file.name] = {"sha256": sha256(file), "bytes": file.stat().st_size}
    manifest.write_text(json.dumps(content))


MUTATIONS = (
    *[change_bytes] * 4,
    *(change_file, change_json, change_json, change_arrays, change_arrays),
    *(change_entry, change_entry, swap_entries),
)
ACCEPTED = (change_entry, swap_entries)  # hashes agree with what is there


def pick(items: list[Any], rng: Random) -> Any:
    return items[int(rng.integers(0, len(items)))]


# --------------------------------------------------------------------------------------------------
# One try


def attempt(number: int, seed: int, originals: Path, known: dict[str, Any], work: Path) -> str:
    """`refused`, `unchanged` or `valid`; anything else is a fault and says which."""
    rng = np.random.default_rng([seed, number])
    name = pick(list(KINDS), rng)
    mutation = pick(list(MUTATIONS), rng)
    path = work / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    source = originals / name
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, path)
    how = mutation(path, rng)
    try:
        found = KINDS[name](path)
    except UserError as error:
        named = str(path) in str(error)
        return "refused" if named else f"{name}: {how}: the error names no path: {error}"
    except BaseException:
        return f"{name}: {how}:\n{traceback.format_exc()[-1500:]}"
    if same(found, known[name]):
        return "unchanged"
    foreign = name.startswith("foreign") or mutation in ACCEPTED or disowned(path)
    return "valid" if foreign else f"{name}: {how}: other data without an error"


def disowned(path: Path) -> bool:
    """Whether a folder of ours no longer says that it is one: then it is a foreign one."""
    files = [path / name for name in ("meta.json", "metadata.json")]
    return path.is_dir() and all(folders.KEY not in f.read_text() for f in files if f.is_file())


def chunk(first: int, seed: int, originals: Path, known: dict[str, Any], work: Path) -> list[str]:
    """The outcomes of CHUNK tries, each in turn, in a process that may crash or hang."""
    inside, outside = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inside)
        output = os.open(os.devnull, os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        with os.fdopen(outside, "w") as pipe:
            for number in range(first, first + CHUNK):
                signal.alarm(PATIENCE)
                pipe.write(json.dumps(attempt(number, seed, originals, known, work)) + "\n")
                pipe.flush()
        os._exit(0)
    os.close(outside)
    with os.fdopen(inside) as pipe:
        outcomes = [json.loads(line) for line in pipe]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        what = "hung" if status == -signal.SIGALRM else f"ended with {status}"
        outcomes.append(f"the process {what}")
    return outcomes


def main() -> int:
    given = parser(__doc__).parse_args()
    warm_up()
    figures: Counter[str] = Counter(inputs=0, refused=0, unchanged=0, valid=0, faults=0)
    with tempfile.TemporaryDirectory(prefix="inputs-") as name:
        folder = Path(name).resolve()
        originals, work = folder / "originals", folder / "work"
        originals.mkdir()
        prepare(originals)
        known = pickle.loads((folder / "originals.known").read_bytes())
        first = 0
        for _ in tries(given.minutes):
            outcomes = chunk(first, given.seed, originals, known, work)
            for number, outcome in enumerate(outcomes, first):
                known_outcome = outcome in ("refused", "unchanged", "valid")
                figures["inputs"] += 1
                figures[outcome if known_outcome else "faults"] += 1
                if not known_outcome:
                    print(f"try {number}: {outcome}", file=sys.stderr, flush=True)
            first += len(outcomes)
    report("inputs", figures)
    return 1 if figures["faults"] else 0


def prepare(originals: Path) -> None:
    """Write all and read all in a process of its own: tensorstore's threads survive no fork."""
    pid = os.fork()
    if pid == 0:
        write_all(originals)
        known = {name: read(originals / name) for name, read in KINDS.items()}
        originals.with_name("originals.known").write_bytes(pickle.dumps(known))
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the files could not be written")


if __name__ == "__main__":
    sys.exit(main())
