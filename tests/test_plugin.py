"""The plugin: put into a small checkout of EPyMARL's shape, run there, and taken out again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
import yaml
from test_dataset import LIMIT, make_dataset

from inspo import main as program
from inspo import plugin
from inspo.epymarl import checkout as installation
from inspo.epymarl.checkout import MANIFEST, REGISTRIES
from inspo.epymarl.configs import chosen, configs, offline_algorithms
from inspo.offline import write_dataset
from inspo.utils.config import flatten, get, has, load_config
from inspo.utils.errors import ConfigError
from inspo.utils.paths import CONFIG_DIR

ROOT = Path(__file__).resolve().parents[1]
STANDIN = Path(__file__).parent / "epymarl_checkout"
ALGORITHMS = offline_algorithms()
BC = "src/config/algs/bc.yaml"
LEARNERS = "src/learners/__init__.py"


@pytest.fixture(autouse=True)
def package(monkeypatch):
    """The Python that runs the checkout has the package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "package"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture
def root(tmp_path):
    return copy_of_standin(tmp_path / "epymarl")


def copy_of_standin(root: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "results")
    return Path(shutil.copytree(STANDIN, root, ignore=ignored))


def git(root: Path, *words: str) -> str:
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false")
    command = ["git", "-C", str(root), *name, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "all")


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder, but git's."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if ".git" not in path.parts
    }


def install(root: Path, *options: str) -> int:
    return plugin.main(["install", str(root), *options])


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


# --- Configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_configurations_say_what_ours_say(algorithm):
    own = yaml.safe_load((CONFIG_DIR / f"algs/{algorithm}.yaml").read_text())
    for name, text in configs(algorithm).items():
        there = yaml.load(text, Loader=yaml.FullLoader)
        env = name.removesuffix(".yaml").removeprefix(algorithm).removeprefix("_")
        words = [f"--config={algorithm}", f"--env-config={env or 'matrix'}_offline", "with"]
        ours = load_config([*words, "quality=other", f"use_presets={bool(env)}"]).values
        for key in (key for key, _ in flatten(own) if not key.startswith("_")):
            registered = key in ("learner", "mac")
            assert get(there, key) == ("offline" if registered else get(ours, key)), key
        for key in ("t_max", "test_interval", "test_greedy", "test_nepisode"):
            assert key not in there or there[key] == ours[key]
        assert ("test_greedy" in there) == bool(env)
        assert there["buffer_size"] == there["batch_size"] and there["runner"] == "offline"
        assert not any(key.startswith("_") or "." in key for key in there)
        assert "# " in next(line for line in text.splitlines() if line.startswith("hidden_dim"))


def test_presets_are_applied_per_environment_and_algorithms_chosen_by_name():
    texts = configs("inspo")
    assert "agent: rnn_ns" in texts["inspo.yaml"] and "\nt_max:" not in texts["inspo.yaml"]
    assert "agent: mlp_ns" in texts["inspo_matrix.yaml"]
    assert "test_greedy: false" in texts["inspo_matrix.yaml"]
    assert "# For quality optimal: with t_max=" in texts["inspo_bridge.yaml"]
    assert {"inspo", "bc"} <= set(ALGORITHMS) and not {"qmix", "mappo"} & set(ALGORITHMS)
    assert chosen("all") == ALGORITHMS and chosen("inspo,bc,bc") == ["bc", "inspo"]
    with pytest.raises(ConfigError, match=r"'inspoo'.* Did you mean 'inspo'"):
        chosen("inspoo")


# --- In and out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""], ids=["newline", "crlf", "no newline"])
def test_remove_leaves_the_tree_as_it_was(root, ending, capsys):
    for path in REGISTRIES:
        text = (root / path).read_bytes().rstrip(b"\n").replace(b"\n", ending or b"\n")
        (root / path).write_bytes(text + ending)
    (root / LEARNERS).chmod(0o755)
    commit(root)
    before = tree(root)

    assert install(root) == 0
    assert "CONFIG: bc, bc_bridge," in capsys.readouterr().out
    for path, kind in REGISTRIES.items():
        added = (root / path).read_bytes().removeprefix(before[path])
        assert f"{kind}; REGISTRY.update({kind})".encode() in added
        assert added.count(b"\n") == 1 and added.count(b"\r\n") == (ending == b"\r\n")
    assert {path for path in before if tree(root)[path] != before[path]} == set(REGISTRIES)
    assert all(
        path.startswith(("src/config/algs/", MANIFEST)) for path in set(tree(root)) - {*before}
    )

    installed, times = tree(root), {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert install(root) == 0 and "nothing to do" in capsys.readouterr().out
    assert tree(root) == installed
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == times

    assert plugin.main(["remove", str(root)]) == 0
    assert tree(root) == before and os.access(root / LEARNERS, os.X_OK)
    assert git(root, "status", "--porcelain", "--ignored") == ""
    assert plugin.main(["remove", str(root)]) == 2
    assert "the plugin is not there" in capsys.readouterr().err


def test_more_fewer_and_newer_algorithms(root, capsys):
    before = tree(root)
    assert install(root, "--algs", "bc") == 0
    assert install(root, "--algs", "inspo,bc") == 0 and (root / BC).exists()
    assert install(root, "--algs", "inspo") == 0 and not (root / BC).exists()
    only_inspo = tree(root)
    path = "src/config/algs/inspo.yaml"
    (root / path).write_text("# of an older version\n")
    manifest = json.loads((root / MANIFEST).read_text())
    manifest |= installation.hashes({path: b"# of an older version\n"})
    (root / MANIFEST).write_text(json.dumps(manifest))
    plugin.main(["status", str(root)])
    assert "brings it up to date" in capsys.readouterr().out
    assert install(root) == 0 and tree(root) == only_inspo  # without --algs: those that are there
    plugin.main(["status", str(root)])
    assert capsys.readouterr().out.endswith(f"{root}: inspo\n")
    for registry in REGISTRIES:  # what the user adds below our line stays
        append(root / registry, "\nmore = 1\n")
    assert install(root) == 0 and plugin.main(["remove", str(root)]) == 0
    more = {registry: before[registry] + b"\nmore = 1\n" for registry in REGISTRIES}
    assert tree(root) == before | more


DAMAGE = {
    "there is no src/run.py": lambda root: (root / "src/run.py").unlink(),
    "are there already, and not the plugin's: src/config/algs/bc_matrix.yaml": lambda root: (
        root / "src/config/algs/bc_matrix.yaml"
    ).write_text(""),
    "src/runners/__init__.py: the name 'offline' is taken": lambda root: append(
        root / "src/runners/__init__.py", "REGISTRY['offline'] = EpisodeRunner\n"
    ),
    "expected a dictionary REGISTRY": lambda root: (root / LEARNERS).write_text("LEARNERS = {}\n"),
    f"uncommitted changes in {LEARNERS}": lambda root: (
        commit(root), append(root / LEARNERS, "# mine\n")
    ),
    "not a manifest of the plugin": lambda root: (root / MANIFEST).write_text("{"),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGE)
def test_install_refuses(root, capsys, message):
    DAMAGE[message](root)
    before = tree(root)
    assert install(root) == 2 and tree(root) == before
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_the_python_of_the_checkout_needs_the_package(root, capsys, monkeypatch, tmp_path):
    before = tree(root)
    (tmp_path / "inspo.py").write_text("__version__ = '0.0.9'")
    for path, found in ((tmp_path, "found 0.0.9"), (tmp_path / "empty", "found none")):
        monkeypatch.setenv("PYTHONPATH", str(path))
        assert install(root, "--python", sys.executable) == 2
        error = capsys.readouterr().err
        assert found in error and "pip install" in error and "--python" in error
    assert install(root, "--python", "no_such_python") == 2 and tree(root) == before
    assert "no_such_python cannot be run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["install", "remove"])
def test_files_edited_by_hand_are_not_lost(root, capsys, command):
    before, line = tree(root), (root / LEARNERS).read_bytes()
    install(root)
    installed = tree(root)
    for message, edit in (
        (f"{BC} was edited", lambda: append(root / BC, "# mine\n")),
        (f"{BC} is gone", lambda: (root / BC).unlink()),
        (
            f"{LEARNERS}: the plugin's line is gone or was edited",
            lambda: (root / LEARNERS).write_bytes(line),
        ),
    ):
        edit()
        edited = tree(root)
        assert plugin.main([command, str(root)]) == 2 and tree(root) == edited
        error = capsys.readouterr().err
        assert message in error and "--force" in error
        plugin.main(["status", str(root)])
        assert message in capsys.readouterr().out
        assert plugin.main([command, str(root), "--force"]) == 0
        assert tree(root) == (before if command == "remove" else installed)
        install(root)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("command", ["install", "remove"])
def test_a_failure_half_way_leaves_all_as_it_was(root, monkeypatch, capsys, command, error):
    if command == "remove":
        install(root)
    before, put = tree(root), installation._put
    for when in (0, 1, 13):  # 10 files, 3 registries, the manifest
        calls = []

        def failing(path, content, calls=calls, when=when):
            calls.append(path)
            if len(calls) == when + 1:
                raise error
            put(path, content)

        monkeypatch.setattr(installation, "_put", failing)
        status = plugin.main([command, str(root)])
        assert status == (2 if isinstance(error, OSError) else 130) and len(calls) > when
        assert "as it was" in capsys.readouterr().err and tree(root) == before


# --- Runs there -----------------------------------------------------------------------------------

SMALL = {  # of a run of a few updates
    "t_max": 100, "lr": 0.01, "batch_size": 4, "test_interval": 1000, "hidden_dim": 8,
    "log_interval": 1, "seed": 5,
}  # fmt: skip
IF_DECLARED = {
    "behaviour.updates": 4, "behaviour.others_updates": 4, "behaviour.eval_interval": 2,
    "critic_hidden_dim": 8, "critic_warmup": 0.2, "critic_minibatch": 16,
}  # fmt: skip
MISTAKES = {
    r"ConfigError: dataset.path: offline training needs data": {"dataset.path": None},
    r"DatasetError: .*nowhere.h5: there is no such file": {"dataset.path": "nowhere.h5"},
    r"ConfigError: alpha: expected float, found str": {"alpha": "much"},
    r"ConfigError: runner: expected 'offline', found 'episode'": {"runner": "episode"},
    r"ConfigError: learner: expected 'offline', found 'idle_learner'": {"learner": "idle_learner"},
    r"ConfigError: mac: expected 'offline', found 'basic_mac'": {"mac": "basic_mac"},
    r"ConfigError: .*inspo-plugin install": {"inspo_version": "0.0.9"},
    r"DatasetError: batch_size is 7, but the dataset holds 6 episodes": {"batch_size": 7},
}
PROGRAM = """
import json, sys
sys.path.insert(0, "src")
sys.argv = ["main.py"]
import main, torch

torch.set_num_threads(1)
said = {}
for name, words in json.load(open("../runs.json")).items():
    try:
        said[name] = dict(main.main(words).stats)
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
    if name == "own":
        said["loaded"] = [module for module in sys.modules if module.startswith("inspo")]
import utils.rl_utils, learners
said["theirs"] = [utils.rl_utils.__file__, learners.__file__]
json.dump(said, open("../said.json", "w"))
"""


def small(algorithm: str) -> dict:
    """Settings with which it trains in no time."""
    own = yaml.safe_load((CONFIG_DIR / f"algs/{algorithm}.yaml").read_text())
    return SMALL | {key: value for key, value in IF_DECLARED.items() if has(own, key)}


def command_line(algorithm: str, *settings: dict) -> list[str]:
    words = [f"{key}={json.dumps(value)}" for part in settings for key, value in part.items()]
    return [f"--config={algorithm}", "--env-config=chance", "with", *words]


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """The stand-in after all its runs: its folder before and after, and what the runs said."""
    root = copy_of_standin(tmp_path_factory.mktemp("trial") / "epymarl")
    commit(root)
    before = tree(root)
    lengths = (3, LIMIT, 1, 5, 4, 6)
    data = make_dataset(lengths, env="matrix", map_name="xor", quality="a")
    write_dataset(root.parent / "data.h5", data)

    here = {"dataset.path": "../data.h5"}
    models = {"checkpoint_path": "results/models/inspo_seed5"}
    saving = {"save_model": True, "save_model_interval": 1, "local_results_path": "results"}
    test = models | {"evaluate": True, "hidden_dim": 8, "critic_hidden_dim": 8}
    runs = {"own": command_line("idle")}  # first, so that it shows what is loaded for it
    runs |= {name: command_line(name, here, small(name)) for name in ALGORITHMS}
    runs["bc_filter"] += ["dataset.keep_share=1.0"]  # of six episodes, four are drawn
    runs["inspo"] = command_line("inspo", here, small("inspo"), saving)
    runs["bc"] += ["batch_size=6", "t_max=96"]  # all 32 rows of the data three times
    runs["evaluate"] = command_line("inspo", test)
    runs["go on"] = command_line("inspo", here, small("inspo"), models, {"t_max": 150})
    for message, values in MISTAKES.items():
        runs[message] = command_line("inspo", here | small("inspo") | values)
    (root.parent / "runs.json").write_text(json.dumps(runs))
    package = {"PYTHONPATH": str(ROOT / "package"), "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", package["PYTHONPATH"])
        assert install(root, "--algs", "all") == 0
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, env=os.environ | package, check=True)
    said = json.loads((root.parent / "said.json").read_text())
    return SimpleNamespace(root=root, said=said, before=before)


def checkpoint(trial, number: int = -1) -> Path:
    folders = (trial.root / "results/models/inspo_seed5").iterdir()
    return sorted(folders, key=lambda path: int(path.name))[number]


def saved(folder: Path) -> dict:
    return th.load(folder / "learner.th", weights_only=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_and_tests_there(trial, algorithm):
    stats = trial.said[algorithm]
    assert isinstance(stats, dict), stats
    assert [n for _, n in stats["test_episodes"]] == [3]  # test_nepisode of the stand-in, no more
    assert len(stats["test_return_mean"]) == 1
    assert "return_mean" not in stats  # nobody plays to train
    assert all(np.isfinite(value) for series in stats.values() for _, value in series)
    steps = [t for key, series in stats.items() if "loss" in key for t, _ in series]
    assert min(steps) == 0 and max(steps) < SMALL["t_max"]  # t_env before the update, as ours


def test_weights_are_those_of_our_harness_bit_for_bit(trial):
    """The same data, seed and settings, once by our main.py and once by the stand-in's."""
    values = small("inspo") | {"dataset.path": trial.root.parent / "data.h5"}
    values |= {"local_results_path": trial.root.parent, "datasets_dir": trial.root.parent}
    values |= dict.fromkeys(("use_presets", "use_progress_bar", "use_cuda"), False)
    words = [f"{key}={value}" for key, value in (values | {"test_nepisode": 0}).items()]
    assert program.main(["--config=inspo", "--env-config=matrix_offline", "with", *words]) == 0
    (ours,), theirs = trial.root.parent.glob("models/*/*/learner.th"), checkpoint(trial)
    assert ours.parent.name == theirs.name
    ours, theirs = saved(ours.parent), saved(theirs)
    assert ours["updates"] == theirs["updates"] > 3
    for network, weights in ours["networks"].items():
        for key, value in weights.items():
            assert th.equal(value, theirs["networks"][network][key]), (network, key)
    first, last = saved(checkpoint(trial, 0))["networks"]["agent"], theirs["networks"]["agent"]
    assert any(not th.equal(first[key], last[key]) for key in first)


def test_training_goes_on_from_a_checkpoint(trial):
    """With the weights of the checkpoint and not those of the behaviour policies."""
    stats = trial.said["go on"]
    assert isinstance(stats, dict), stats
    updates = saved(checkpoint(trial))["updates"]
    assert stats["updates"][0] == [int(checkpoint(trial).name), updates + 1]
    assert stats["kl"][0][1] > 1e-4  # of the behaviour policies to themselves it would be 0
    tested = trial.said["evaluate"]  # without data
    assert set(tested) == {"test_return_mean", "test_episodes"}
    assert [t for t, _ in tested["test_return_mean"]] == [int(checkpoint(trial).name)]
    # EPyMARL's loop comes once more where t_env is t_max to the step; ours does not.
    assert [t for t, _ in trial.said["bc"]["loss"]] == [0, 32, 64]


def test_the_checkouts_own_modules_stay_its_own(trial):
    assert isinstance(trial.said["own"], dict), trial.said["own"]
    assert set(trial.said["loaded"]) == {"inspo", "inspo.epymarl"}  # for its own algorithm
    assert all(file.startswith(str(trial.root)) for file in trial.said["theirs"])


def test_mistakes_have_a_clear_message(trial):
    for message in MISTAKES:
        assert re.match(message, trial.said[message])


def test_after_runs_remove_leaves_the_tree_as_it_was(trial, tmp_path):
    root = Path(shutil.copytree(trial.root, tmp_path / "epymarl"))
    assert plugin.main(["remove", str(root)]) == 0
    shutil.rmtree(root / "results")
    left = {path: c for path, c in tree(root).items() if "__pycache__" not in path}
    assert left == trial.before and git(root, "status", "--porcelain") == ""
