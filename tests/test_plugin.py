"""The plugin: put into a small checkout of EPyMARL's shape, run there, and taken out again."""

from __future__ import annotations

import copy
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
from inspo import plugin
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.epymarl import configs, installation
from inspo.epymarl.installation import (
    HOME,
    MANIFEST,
    REGISTRIES,
    PluginError,
    install,
    remove,
    status,
)
from inspo.learners import REGISTRY as learner_REGISTRY
from inspo.offline import write_dataset
from inspo.run import run
from inspo.utils.config import flatten, get, has, load_config
from inspo.utils.errors import ConfigError
from inspo.utils.logging import Logger
from inspo.utils.paths import CONFIG_DIR
from inspo.utils.seeding import seed_everything
from test_dataset import LIMIT, make_dataset

STANDIN = Path(__file__).parent / "epymarl_checkout"
SRC = installation.SRC
KEPT = ("__pycache__", "results", ".git")


@pytest.fixture(scope="module", autouse=True)
def computed_once():
    """What would be installed, computed once for each choice of algorithms."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("contents", "parts"):
            patch.setattr(installation, name, remembering(getattr(installation, name)))
        yield


def remembering(function):
    known = {}

    def remembered(algorithms):
        key = tuple(algorithms)
        if key not in known:
            known[key] = function(algorithms)
        return copy.deepcopy(known[key])

    return remembered


def copy_of_standin(root: Path) -> Path:
    shutil.copytree(STANDIN, root, ignore=shutil.ignore_patterns(*KEPT))
    return root


@pytest.fixture
def checkout(tmp_path):
    return copy_of_standin(tmp_path / "epymarl")


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


# --------------------------------------------------------------------------------------------------
# What goes there


def test_registries_are_read_as_they_are():
    for package, real in (("learners", learner_REGISTRY), ("controllers", mac_REGISTRY)):
        expected = {name: [made.__module__, made.__qualname__] for name, made in real.items()}
        assert installation.registry(package) == expected


def test_the_closure_follows_every_import(tmp_path, monkeypatch):
    files = {
        "a/__init__.py": "import a.unasked",
        "a/unasked.py": "",
        "a/first.py": "import b.plain, numpy\ndef f():\n    from c import module, name",
        "b/plain.py": "if False:\n    from d import REGISTRY",
        "c/__init__.py": "name = 1",
        "c/module.py": "import a.first as again",
        "d/__init__.py": "from d.entry import Entry",
        "d/entry.py": "'from a import unasked'",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(installation, "SRC", tmp_path)
    found = installation.closure(["a.first"])
    assert set(found) == {"a.first", "b.plain", "c", "c.module", "d", "d.entry"}
    assert found["c"] == tmp_path / "c/__init__.py"


def test_our_files_go_along_byte_for_byte():
    files = installation.contents(["inspo", "bc"])
    ours = {name: content for name, content in files.items() if name.startswith(f"{HOME}/project/")}
    assert f"{HOME}/project/learners/inspo_learner.py" in ours
    for unwanted in ("run.py", "main.py", "learners/qmix_learner.py", "learners/__init__.py"):
        assert f"{HOME}/project/{unwanted}" not in ours
    for name, content in ours.items():
        if name != f"{HOME}/project/__init__.py":
            assert content == (SRC / name.removeprefix(f"{HOME}/project/")).read_bytes()


ALGORITHMS = configs.offline_algorithms()


def test_offline_algorithms_are_those_that_do_not_play():
    assert {"inspo", "bc"} <= set(ALGORITHMS)
    assert not {"qmix", "mappo"} & set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_configurations_say_what_ours_say(algorithm):
    for name, text in configs.configs(algorithm).items():
        there = yaml.load(text, Loader=yaml.FullLoader)
        env = name.removesuffix(".yaml").removeprefix(algorithm).removeprefix("_")
        words = [f"--config={algorithm}", f"--env-config={env or 'matrix'}_offline"]
        words += ["with", "quality=other"]  # no preset for a certain quality
        ours = load_config(words if env else [*words, "use_presets=False"]).values
        own = yaml.safe_load((CONFIG_DIR / f"algs/{algorithm}.yaml").read_text())
        for key, value in flatten({k: v for k, v in own.items() if not k.startswith("_")}):
            expected = get(ours, key) if env or key in own else value
            assert get(there, key) == (f"offline_{expected}" if key == "mac" else expected), key
        if env:
            for key in ("t_max", "test_interval", "test_greedy"):
                assert key not in there or there[key] == ours[key]
        assert there["buffer_size"] == there["batch_size"] and there["runner"] == "offline"
        assert not any(key.startswith("_") or "." in key for key in there)
        assert "# " in next(line for line in text.splitlines() if line.startswith("hidden_dim"))


def test_presets_are_applied_per_environment():
    files = {n: yaml.safe_load(t) for n, t in configs.configs("inspo").items()}
    assert files["inspo.yaml"]["agent"] == "rnn_ns"
    assert files["inspo_matrix.yaml"]["agent"] == "mlp_ns"
    assert files["inspo_matrix.yaml"]["test_greedy"] is False
    assert "t_max" not in files["inspo.yaml"]
    assert re.search(
        "# For quality optimal: with t_max=", configs.configs("inspo")["inspo_bridge.yaml"]
    )


def test_algorithms_are_chosen_by_name():
    assert configs.chosen(None) is None
    assert configs.chosen("all") == ALGORITHMS
    assert configs.chosen("inspo,bc,bc") == ["bc", "inspo"]
    with pytest.raises(ConfigError, match=r"'inspoo' is no .* Did you mean 'inspo'"):
        configs.chosen("inspoo")
    with pytest.raises(ConfigError, match="'qmix' is no offline algorithm"):
        configs.chosen("bc,qmix")
    with pytest.raises(ConfigError, match="found none"):
        configs.chosen("")


# --------------------------------------------------------------------------------------------------
# In and out


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""], ids=["newline", "crlf", "no newline"])
def test_remove_leaves_the_tree_as_it_was(checkout, ending, capsys):
    for path in REGISTRIES:
        file = checkout / path
        text = file.read_bytes().rstrip(b"\n").replace(b"\n", ending or b"\n")
        file.write_bytes(text + ending)
    (checkout / "src/main.py").chmod(0o755)
    (checkout / "src/learners/__init__.py").chmod(0o755)
    commit(checkout)
    before = tree(checkout)

    assert plugin.main(["install", str(checkout)]) == 0
    assert "CONFIG: inspo, inspo_matrix," in capsys.readouterr().out
    for path, what in REGISTRIES.items():
        content = (checkout / path).read_bytes()
        assert content.startswith(before[path])
        assert re.fullmatch(
            rb"\s*from inspo_plugin import %b; REGISTRY.update\(%b\)  #.*\s*"
            % ((what.encode(),) * 2),
            content[len(before[path]) :],
        )
        assert content.count(b"\n") == before[path].count(b"\n") + 1
        assert content.replace(b"\r\n", b"").count(b"\n") == (
            0 if ending == b"\r\n" else content.count(b"\n")
        )
    assert {path for path in before if tree(checkout)[path] != before[path]} == set(REGISTRIES)
    (checkout / HOME / "__pycache__").mkdir()
    (checkout / HOME / "__pycache__/offline.cpython-311.pyc").write_bytes(b"")

    assert plugin.main(["remove", str(checkout)]) == 0
    assert tree(checkout) == before
    assert os.access(checkout / "src/learners/__init__.py", os.X_OK)
    assert git(checkout, "status", "--porcelain", "--ignored") == ""


def test_a_second_install_changes_nothing(checkout, capsys):
    install(checkout, None, "c1", force=False)
    before, times = tree(checkout), {p: p.stat().st_mtime_ns for p in checkout.rglob("*")}
    assert install(checkout, None, "c2", force=False) == installation.Outcome()
    assert plugin.main(["install", str(checkout)]) == 0
    assert "nothing to do: inspo, bc, of commit c1" in capsys.readouterr().out
    assert tree(checkout) == before
    assert {p: p.stat().st_mtime_ns for p in checkout.rglob("*")} == times


def test_more_and_fewer_algorithms(checkout):
    before = tree(checkout)
    install(checkout, ["bc"], None, force=False)
    assert not (checkout / "src/config/algs/inspo.yaml").exists()
    install(checkout, ["inspo", "bc"], None, force=False)
    assert (checkout / HOME / "project/learners/inspo_learner.py").exists()
    outcome = install(checkout, ["bc"], None, force=False)
    assert "src/config/algs/inspo.yaml" in outcome.removed
    assert not (checkout / HOME / "project/learners/inspo_learner.py").exists()
    assert install(checkout, None, None, force=False) == installation.Outcome()  # keeps bc alone
    remove(checkout, force=False)
    assert tree(checkout) == before


def test_install_brings_an_older_version_up_to_date(checkout, capsys):
    install(checkout, None, "old", force=False)
    wanted = tree(checkout)
    # As if an older version had put other things there.
    manifest = json.loads((checkout / MANIFEST).read_text())
    learner, gone = f"{HOME}/project/learners/bc_learner.py", f"{HOME}/project/offline/gone/a.py"
    absent = f"{HOME}/project/utils/seeding.py"
    (checkout / gone).parent.mkdir()
    for name, content in ((learner, b"pass\n"), (gone, b"1\n")):
        (checkout / name).write_bytes(content)
        manifest["files"][name] = installation._hash(content)
    (checkout / absent).unlink()
    del manifest["files"][absent]
    (checkout / MANIFEST).write_text(json.dumps(manifest))

    assert status(checkout).pending
    assert plugin.main(["status", str(checkout)]) == 0
    assert "brings them up to date" in capsys.readouterr().out
    outcome = install(checkout, None, "new", force=False)
    assert (outcome.added, outcome.changed, outcome.removed) == ([absent], [learner], [gone])
    now = tree(checkout)
    assert json.loads(now.pop(MANIFEST))["commit"] == "new"
    assert json.loads(wanted.pop(MANIFEST))["commit"] == "old"
    assert now == wanted
    assert not status(checkout).pending


def test_what_the_user_adds_below_our_line_stays(checkout):
    """Their registry may grow after the plugin went in; only its own text goes."""
    for path in REGISTRIES:
        before = (checkout / path).read_bytes()
        install(checkout, None, None, force=False)
        (checkout / path).write_bytes((checkout / path).read_bytes() + b"\nmore = 1\n")
        assert status(checkout).edited == []
        assert install(checkout, None, None, force=False) == installation.Outcome()
        remove(checkout, force=False)
        assert (checkout / path).read_bytes() == before + b"\nmore = 1\n"


def test_status_says_what_there_is(checkout, capsys):
    plugin.main(["status", str(checkout)])
    assert "the plugin is not there" in capsys.readouterr().out
    install(checkout, ["bc"], "abc", force=False)
    before = tree(checkout)
    plugin.main(["status", str(checkout)])
    said = capsys.readouterr().out
    assert "bc, of commit abc" in said and "are what this project installs" in said
    assert tree(checkout) == before
    (checkout / "src/config/algs/bc.yaml").write_text("name: mine\n")
    plugin.main(["status", str(checkout)])
    assert "src/config/algs/bc.yaml was edited" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# Refusals


def damage(root: Path, how: str) -> None:
    registry = root / "src/learners/__init__.py"
    if how == "no checkout":
        (root / "src/run.py").unlink()
    elif how == "taken file":
        (root / "src/config/algs/bc_matrix.yaml").write_text("name: mine\n")
    elif how == "taken folder":
        (root / HOME).mkdir()
        (root / HOME / "mine.py").write_text("")
    elif how == "taken learner":
        registry.write_text(registry.read_text() + 'REGISTRY["bc_learner"] = IdleLearner\n')
    elif how == "taken runner":
        file = root / "src/runners/__init__.py"
        file.write_text(file.read_text() + "REGISTRY['offline'] = EpisodeRunner\n")
    elif how == "no registry":
        registry.write_text("LEARNERS = {}\n")
    elif how == "no Python":
        registry.write_text("REGISTRY = {\n")
    elif how == "uncommitted":
        commit(root)
        registry.write_text(registry.read_text() + "# mine\n")
    elif how == "broken manifest":
        (root / HOME).mkdir()
        (root / MANIFEST).write_text("{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no checkout", "not an EPyMARL checkout: there is no src/run.py"),
        ("taken file", "are there already, and not the plugin's: src/config/algs/bc_matrix.yaml"),
        ("taken folder", f"are there already, and not the plugin's: {HOME}"),
        ("taken learner", "src/learners/__init__.py: the name 'bc_learner' is taken"),
        ("taken runner", "src/runners/__init__.py: the name 'offline' is taken"),
        ("no registry", "expected a dictionary REGISTRY"),
        ("no Python", "not valid Python"),
        ("uncommitted", "uncommitted changes in src/learners/__init__.py"),
        ("broken manifest", "not a manifest of the plugin"),
    ],
)
def test_install_refuses(checkout, capsys, how, message):
    damage(checkout, how)
    before = tree(checkout)
    assert plugin.main(["install", str(checkout)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert tree(checkout) == before


def test_uncommitted_changes_elsewhere_do_not_matter(checkout):
    commit(checkout)
    (checkout / "src/run.py").write_text((checkout / "src/run.py").read_text() + "# mine\n")
    assert install(checkout, ["bc"], None, force=False).added


def edit(root: Path, what: str) -> str:
    """Edit what was installed; returns what is said of it."""
    if what == "line":
        file = root / "src/runners/__init__.py"
        file.write_text(file.read_text().replace("from inspo_plugin", "from my_plugin"))
        return "src/runners/__init__.py: its line of the plugin is gone or was edited"
    if what == "new file":
        (root / HOME / "project/mine.py").write_text("x = 1\n")
        return f"{HOME}/project/mine.py is not the plugin's"
    file = root / HOME / "project/learners/bc_learner.py"
    if what == "gone":
        file.unlink()
        return "bc_learner.py is gone"
    file.write_text(file.read_text() + "# mine\n")
    return "bc_learner.py was edited"


@pytest.mark.parametrize("command", ["install", "remove"])
@pytest.mark.parametrize("what", ["edited", "gone", "line", "new file"])
def test_files_edited_by_hand_are_not_lost(checkout, capsys, command, what):
    before = tree(checkout)
    install(checkout, ["bc"], None, force=False)
    installed = tree(checkout)
    message = edit(checkout, what)
    after = tree(checkout)
    assert plugin.main([command, str(checkout)]) == 2
    said = capsys.readouterr().err
    assert message in said and "--force" in said
    assert tree(checkout) == after
    assert any(message in line for line in status(checkout).edited)

    assert plugin.main([command, str(checkout), "--force"]) == 0
    expected = before if command == "remove" else installed
    mine = set(after) - set(installed) if what == "new file" else set()
    differing = {p for p in {*tree(checkout), *expected} if p not in mine}
    differing = {p for p in differing if tree(checkout).get(p, "-") != expected.get(p, "-")}
    if command == "remove" and what == "new file":
        differing -= {HOME, f"{HOME}/project"}  # the folders of the file that stays
    if what == "line":  # what was made of the line by hand is no longer the plugin's to know
        differing -= {"src/runners/__init__.py"}
    assert differing == ({MANIFEST} & differing if command == "install" else set())


@pytest.mark.parametrize("command", ["install", "remove"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", [0, 1, 20, -1])
def test_a_failure_half_way_leaves_all_as_it_was(checkout, monkeypatch, command, error, when):
    files = installation.contents(["bc"])
    monkeypatch.setattr(installation, "contents", lambda algorithms: files)
    if command == "remove":
        install(checkout, ["bc"], None, force=False)
    before = tree(checkout)
    calls = {"made": 0, "last": len(files) + len(REGISTRIES)}
    put = installation._put

    def failing(path, content):
        calls["made"] += 1
        if calls["made"] - 1 == (when if when >= 0 else calls["last"]):
            raise error
        put(path, content)

    monkeypatch.setattr(installation, "_put", failing)
    expected = PluginError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="as it was before" if expected is PluginError else None):
        if command == "install":
            install(checkout, ["bc"], None, force=False)
        else:
            remove(checkout, force=False)
    assert tree(checkout) == before


def test_remove_without_a_plugin(checkout, capsys):
    assert plugin.main(["remove", str(checkout)]) == 2
    assert "the plugin is not there" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        plugin.main(["--help"])
    said = capsys.readouterr().out
    assert "src/inspo_plugin/" in said and "dataset.path=" in said
    with pytest.raises(SystemExit):
        plugin.main(["install", "--help"])
    assert "--algs" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# A run there

SMALL = {  # of a run of a few updates
    "t_max": 100,
    "lr": 0.01,
    "batch_size": 4,
    "test_interval": 1000,
    "hidden_dim": 8,
    "log_interval": 1,
    "seed": 5,
}

PROGRAM = """
import json, sys
sys.path.insert(0, "src")
sys.argv = ["main.py"]
import main, torch

torch.set_num_threads(1)
said = {}
for name, words in json.loads(open("runs.json").read()).items():
    try:
        logger = main.main(words)
        said[name] = {key: values for key, values in logger.stats.items()}
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
import utils.rl_utils, learners
said["theirs"] = [utils.rl_utils.__file__, learners.__file__]
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
said["loaded"] = sorted(n for n, file in files.items() if file and n.startswith("inspo_plugin."))
open("said.json", "w").write(json.dumps(said))
"""


def words_of(values: dict) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def shrink(algorithm: str) -> dict:
    """SMALL, with the behaviour policies of an algorithm, if it has them, fitted in no time."""
    values = configs.complete(algorithm)
    small = {"behaviour.updates": 4, "behaviour.others_updates": 4, "behaviour.eval_interval": 2}
    small |= {"critic_hidden_dim": 8, "critic_warmup": 0.2, "critic_minibatch": 16}
    return SMALL | {key: value for key, value in small.items() if has(values, key)}


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """The stand-in after all its runs: its root, and what they said."""
    root = copy_of_standin(tmp_path_factory.mktemp("trial") / "epymarl")
    commit(root)
    before = tree(root)
    lengths = (3, LIMIT, 1, 5, 4, 6)
    data = make_dataset(lengths, env="matrix", map_name="xor", quality="a")
    write_dataset(root.parent / "data.h5", data)
    install(root, ALGORITHMS, None, force=False)

    here = {"dataset.path": "../data.h5"}
    chance = "--env-config=chance"
    runs = {
        algorithm: [f"--config={algorithm}", chance, "with", *words_of(here | shrink(algorithm))]
        for algorithm in ALGORITHMS
    }
    saving = {"save_model": True, "save_model_interval": 1, "local_results_path": "results"}
    runs["inspo"] += words_of(saving)
    runs["bc"] += words_of({"batch_size": 6, "t_max": 96})  # all 32 rows of the data three times
    models = {"checkpoint_path": "results/models/inspo_seed5"}
    test = models | {"evaluate": True, "hidden_dim": 8, "critic_hidden_dim": 8}
    runs["evaluate"] = ["--config=inspo", chance, "with", *words_of(test)]
    onwards = here | shrink("inspo") | models | {"t_max": 150}
    runs["go on"] = ["--config=inspo", chance, "with", *words_of(onwards)]
    runs["own"] = ["--config=idle", chance]
    bad = {
        "no path": {"dataset.path": None},
        "no file": {"dataset.path": "nowhere.h5"},
        "choice": {"update": "sideways"},
        "type": {"alpha": "much"},
        "range": {"behaviour.held_out": 2.0},
        "another runner": {"runner": "episode"},
        "their learner": {"learner": "idle_learner"},
        "their mac": {"mac": "basic_mac"},
        "too large": {"batch_size": 7},
    }
    for name, values in bad.items():
        values = here | shrink("inspo") | values
        runs[name] = ["--config=inspo", chance, "with", *words_of(values)]
    (root / "runs.json").write_text(json.dumps(runs))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, env=environment, check=True)
    said = json.loads((root / "said.json").read_text())
    for name in ("runs.json", "said.json"):
        (root / name).unlink()
    return SimpleNamespace(root=root, said=said, before=before)


def checkpoint(trial, step=None):
    folders = sorted(
        (trial.root / "results/models/inspo_seed5").iterdir(), key=lambda p: int(p.name)
    )
    return folders[-1] if step is None else folders[step]


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


def test_training_ends_at_t_max(trial):
    """EPyMARL's loop comes once more where t_env is t_max to the step; ours does not."""
    assert [t for t, _ in trial.said["bc"]["loss"]] == [0, 32, 64]


def test_weights_are_those_of_our_harness_bit_for_bit(trial, tmp_path):
    """The same data, seed and settings, once by our run.py and once by the stand-in's."""
    values = shrink("inspo")
    words = ["use_presets=False", "test_nepisode=0", "use_progress_bar=False", "use_cuda=False"]
    words += [f"dataset.path={trial.root.parent / 'data.h5'}", f"local_results_path={tmp_path}"]
    words += [f"datasets_dir={tmp_path}", "test_interval=1000", "save_model_interval=1000"]
    words += [f"{key}={value}" for key, value in values.items() if key != "test_interval"]
    env = ["--config=inspo", "--env-config=matrix_offline", "with"]
    args = SimpleNamespace(**load_config([*env, *words]).values, device="cpu", unique_token="run")
    seed_everything(args.seed)
    result = run(args, Logger())
    saved = checkpoint(trial)
    assert int(saved.name) == result["t_env"]
    ours = th.load(tmp_path / "models/run" / saved.name / "learner.th", weights_only=True)
    theirs = th.load(saved / "learner.th", weights_only=True)
    assert ours["updates"] == theirs["updates"] == result["updates"] > 3
    for network, weights in ours["networks"].items():
        for key, value in weights.items():
            assert th.equal(value, theirs["networks"][network][key]), (network, key)
    first = th.load(checkpoint(trial, 0) / "learner.th", weights_only=True)["networks"]["agent"]
    assert any(not th.equal(first[k], v) for k, v in theirs["networks"]["agent"].items())


def test_a_checkpoint_is_tested_without_data(trial):
    stats = trial.said["evaluate"]
    assert isinstance(stats, dict), stats
    step = int(checkpoint(trial).name)
    assert set(stats) == {"test_return_mean", "test_episodes"}
    assert [t for t, _ in stats["test_return_mean"]] == [step]


def test_training_goes_on_from_a_checkpoint(trial):
    """With the weights of the checkpoint and not those of the behaviour policies."""
    stats = trial.said["go on"]
    assert isinstance(stats, dict), stats
    saved = checkpoint(trial)
    before = th.load(saved / "learner.th", weights_only=True)["updates"]
    assert stats["updates"][0] == [int(saved.name), before + 1]
    assert stats["kl"][0][1] > 1e-4  # of the behaviour policies to themselves it would be 0


def test_the_checkouts_own_modules_stay_its_own(trial):
    assert isinstance(trial.said["own"], dict), trial.said["own"]
    assert all(str(trial.root) in file and HOME not in file for file in trial.said["theirs"])
    assert "inspo_plugin.project.utils.rl_utils" in trial.said["loaded"]


def test_every_file_that_is_loaded_was_installed_and_back(trial):
    prefix = "inspo_plugin.project."
    modules = {m.removeprefix(prefix) for m in trial.said["loaded"] if m.startswith(prefix)}
    assert modules == set(installation.ours(installation.parts(ALGORITHMS)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no path", "ConfigError: dataset.path: offline training needs data"),
        ("no file", "DatasetError: nowhere.h5: there is no such file"),
        ("choice", "ConfigError: update: unknown value 'sideways'"),
        ("type", "ConfigError: alpha: expected float, found str"),
        ("range", "ConfigError: behaviour.held_out: expected at most 0.9"),
        ("another runner", "ConfigError: runner: .* expected 'offline', found 'episode'"),
        (
            "their learner",
            "ConfigError: learner: the runner 'offline' feeds .* found 'idle_learner'",
        ),
        ("their mac", "ConfigError: mac: the runner 'offline' feeds .* found 'basic_mac'"),
        ("too large", "DatasetError: batch_size is 7, but the dataset holds 6 episodes"),
    ],
)
def test_mistakes_have_a_clear_message(trial, name, message):
    assert re.search(message, trial.said[name])


def test_after_runs_remove_leaves_the_tree_as_it_was(trial, tmp_path):
    root = tmp_path / "epymarl"
    shutil.copytree(trial.root, root)
    (root / HOME / "__pycache__").mkdir(exist_ok=True)  # whether Python wrote bytecode or not
    (root / HOME / "__pycache__/offline.cpython-311.pyc").write_bytes(b"")
    remove(root, force=False)
    left = {
        path: content
        for path, content in tree(root).items()
        if path.split("/")[0] != "results" and "__pycache__" not in path
    }
    assert left == trial.before
    assert not (root / HOME).exists()
    assert git(root, "status", "--porcelain") == ""
