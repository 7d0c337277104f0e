"""Whole runs through the command line: every algorithm and environment, stops and resumes."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch as th
import yaml
from test_dataset import LIMIT, make_dataset

from inspo import main as program
from inspo import run as run_module
from inspo.offline import write_dataset
from inspo.runners.vector_runner import VectorRunner
from inspo.utils.config import load_config, names
from inspo.utils.errors import EnvironmentFailure
from inspo.utils.paths import CONFIG_DIR

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "inspo": ["batch_size=8", "behaviour.updates=4", "behaviour.eval_interval=2",
              "behaviour.others_updates=4", "critic_hidden_dim=8"],
    "awr": ["batch_size=8", "behaviour.updates=4", "behaviour.eval_interval=2",
            "critic_hidden_dim=8"],
    "alberdice": ["batch_size=8", "critic_hidden_dim=8"],
    "bc": ["batch_size=8"],
    "bc_filter": ["batch_size=8"],
    "icq": ["batch_size=8", "critic_hidden_dim=8"],
    "omar": ["batch_size=8", "critic_hidden_dim=8"],
    "omiga": ["batch_size=8", "critic_hidden_dim=8"],
    "cfcql": ["batch_size=8", "target_update_interval=3", "behaviour.updates=4",
              "behaviour.eval_interval=2"],
    "comadice": ["batch_size=8", "critic_hidden_dim=8"],
    "oryx": ["batch_size=8"],
    "iql": ["batch_size=8", "critic_hidden_dim=8"],
    "awac": ["batch_size=8", "critic_hidden_dim=8"],
    "td3bc": ["batch_size=8", "critic_hidden_dim=8"],
    "idqn_cql": ["batch_size=8", "target_update_interval=3"],
    "qmix_cql": ["batch_size=8", "target_update_interval=3", "raw_sample_actions=5"],
    "macql": ["batch_size=8", "target_update_interval=3", "raw_sample_actions=5"],
    "qmix": ["batch_size=8", "buffer_size=40", "target_update_interval=16"],
    "mappo": ["train_interval=8", "epochs=2", "critic_hidden_dim=8"],
}  # fmt: skip
COMMON = [
    "seed=5", "use_cuda=False", "use_progress_bar=False", "hidden_dim=8", "batch_size_run=8",
    "test_nepisode=6", "final_test_nepisode=10", "log_interval=40", "test_interval=60",
]  # fmt: skip


def is_offline(environment: str) -> bool:
    return load_config(["--config=bc", f"--env-config={environment}"]).values["offline"]


def learns_online(algorithm: str) -> bool:
    return "train_interval" in yaml.safe_load(
        (CONFIG_DIR / "algs" / f"{algorithm}.yaml").read_text()
    )


# A learner sees batches alone: all of them on the small games, one of each kind elsewhere.
SMALL_GAMES = ("matrix", "bridge")
OF_EACH_KIND = {"inspo", "bc", "cfcql", "alberdice", "oryx", "qmix", "mappo"}
PAIRS = [
    (algorithm, environment)
    for environment in names("envs")
    for algorithm in names("algs")
    if is_offline(environment) != learns_online(algorithm)
    and not environment.startswith(("smax", "sc2"))
    and (environment.startswith(SMALL_GAMES) or algorithm in OF_EACH_KIND)
]


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """Generated datasets are made once for all the tests of this module."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def start(tmp_path, datasets, monkeypatch):
    """start(alg, env, *words): the exit status of main; results go to tmp_path/results."""

    def call(algorithm, environment, *words, results="results"):
        argv = [f"--config={algorithm}", f"--env-config={environment}", "with", *COMMON]
        argv += TINY.get(algorithm, [])
        argv += [f"datasets_dir={datasets}", f"local_results_path={tmp_path / results}", *words]
        return program.main(argv)

    return call


def models(tmp_path, results="results") -> Path:
    (folder,) = (tmp_path / results / "models").iterdir()
    return folder


def record(tmp_path, results="results", run="1") -> dict:
    (path,) = (tmp_path / results / "sacred").glob(f"*/*/{run}/run.json")
    return json.loads(path.read_text())


def metrics(tmp_path, results="results", run="1") -> dict:
    (path,) = (tmp_path / results / "sacred").glob(f"*/*/{run}/metrics.json")
    found = json.loads(path.read_text())
    rates = found.pop("updates_per_second")  # of the clock: no two runs have the same
    assert all(rate > 0 for rate in rates["values"])
    return {key: list(zip(x["steps"], x["values"])) for key, x in found.items()}


@pytest.mark.parametrize(("algorithm", "environment"), PAIRS)
def test_smoke(start, tmp_path, algorithm, environment):
    t_max = 160 if environment.startswith("matrix") else 400
    assert start(algorithm, environment, f"t_max={t_max}") == 0
    run = record(tmp_path)
    result = run["result"]
    assert run["status"] == "COMPLETED" and result["updates"] > 0
    assert (len(result["returns"]), len(result["lengths"])) == (10, 10)
    assert result["tests"][0]["t_env"] == 0
    assert result["final"]["t_env"] == result["t_env"] >= t_max
    assert {"test_return_mean", "test_return_std", "test_ep_length_mean"} <= set(result["final"])
    numbers = [test["test_episodes"] for test in result["tests"]]
    assert numbers == [6] * (len(numbers) - 1) + [10]
    step = models(tmp_path) / str(result["t_env"])
    assert {p.name for p in step.iterdir()} >= {"agent.th", "learner.th", "run.th"}


def test_an_offline_learner_in_an_online_environment_is_one_clear_error(start, capsys):
    assert start("bc", "matrix", "t_max=100") == 2
    error = capsys.readouterr().err
    assert "matrix_offline" in error and "Traceback" not in error


# Exact resume


def leaves(value, path="") -> dict:
    """path -> number or list of numbers of nested dictionaries and lists."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in leaves(item, f"{path}/{key}").items()}
    return {path: value.tolist() if isinstance(value, th.Tensor) else value}


def final_weights(folder: Path) -> dict:
    last = max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    return leaves(th.load(last / "learner.th", weights_only=True))


def assert_same_end(tmp_path, whole, resumed):
    first, second = (final_weights(models(tmp_path, name)) for name in (whole, resumed))
    assert first.keys() == second.keys()
    assert len(first) > 10
    for key, value in first.items():
        assert value == second[key], key
    a = record(tmp_path, whole)["result"]
    b = record(tmp_path, resumed, run="2")["result"]
    for key in ("t_env", "updates", "final", "tests", "returns", "lengths"):
        assert a[key] == b[key], key
    # The history is told to the new record too: both curves are whole, and the same.
    assert metrics(tmp_path, resumed, run="2") == metrics(tmp_path, whole)


RESUMED = [
    ("inspo", "matrix_offline", ["t_max=320", "agent=rnn_ns", "beta=3.0", "tune_alpha=True"]),
    ("inspo", "matrix_offline", ["t_max=160", "agent_order=semi_greedy", "resample=draw"]),
    ("bc", "bridge_offline", ["t_max=600", "agent=rnn", "lr_decay=cosine"]),
    ("cfcql", "bridge_offline", ["t_max=600", "agent=rnn"]),
    ("macql", "matrix_offline", ["t_max=160"]),
    ("omar", "bridge_offline", ["t_max=600", "agent=rnn", "target_update_interval=3"]),
    ("icq", "bridge_offline", ["t_max=600", "agent=rnn", "target_update_interval=3"]),
    ("omiga", "bridge_offline", ["t_max=600", "agent=rnn_ns"]),
    ("alberdice", "bridge_offline", ["t_max=600", "agent=rnn_ns"]),
    ("comadice", "matrix_offline", ["t_max=160", "value_loss=released"]),
    ("oryx", "bridge_offline", ["t_max=600"]),
    ("td3bc", "bridge_offline", ["t_max=600", "cap_targets=True", "policy_delay=3"]),
    ("qmix", "matrix", ["t_max=320", "epsilon_anneal_time=200"]),
    ("mappo", "bridge", ["t_max=1000"]),
]


@pytest.mark.parametrize(("algorithm", "environment", "words"), RESUMED)
def test_a_stopped_run_that_is_resumed_is_the_run_that_was_not(
    start, tmp_path, datasets, capsys, monkeypatch, algorithm, environment, words
):
    """Stopped by SIGTERM between two checkpoints: saved at once, and the same to the last bit."""
    words = [*words, "save_model_interval=100000", "test_interval=150", "test_nepisode=3"]
    assert start(algorithm, environment, *words, results="whole") == 0

    real, calls = run_module.Saver.save_if_due, []

    def stop_in_the_middle(saver):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        real(saver)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Saver, "save_if_due", stop_in_the_middle)
        assert start(algorithm, environment, *words, results="cut") == 143
    assert "go on with resume=" in capsys.readouterr().err
    assert record(tmp_path, "cut")["status"] == "INTERRUPTED"
    resume = f"resume={models(tmp_path, 'cut')}"
    th.manual_seed(123)  # nothing of this process's past may matter
    shutil.rmtree(datasets / "cache", ignore_errors=True)  # nor whether the cache is there
    assert start(algorithm, environment, *words, resume, results="cut") == 0
    assert_same_end(tmp_path, "whole", "cut")


@pytest.mark.parametrize(
    ("algorithm", "environment"), [("inspo", "matrix_offline"), ("qmix", "matrix")]
)
def test_a_run_that_died_goes_on_from_its_last_checkpoint(
    start, tmp_path, monkeypatch, algorithm, environment
):
    """No time to save anything: two updates after the checkpoint are lost and done again."""
    words = ["t_max=160", "save_model_interval=60"]
    assert start(algorithm, environment, *words, results="whole") == 0

    class Killed(BaseException):
        pass

    real, after = run_module.Saver.save_if_due, []

    def die(saver):
        if saver.progress.last_save > 0:
            after.append(1)
            if len(after) == 3:
                raise Killed
        real(saver)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Saver, "save_if_due", die)
        with pytest.raises(Killed):
            start(algorithm, environment, *words, results="cut")
    resume = f"resume={models(tmp_path, 'cut')}"
    assert start(algorithm, environment, *words, resume, results="cut") == 0
    assert_same_end(tmp_path, "whole", "cut")


def test_an_environment_that_keeps_failing_saves_the_run(start, tmp_path, monkeypatch, capsys):
    real, calls = VectorRunner.run, []

    def fail_the_fourth_time(runner, test_mode=False):
        calls.append(1)
        if len(calls) == 4:
            raise EnvironmentFailure("environment worker 0 died")
        return real(runner, test_mode)

    with monkeypatch.context() as patch:
        patch.setattr(VectorRunner, "run", fail_the_fourth_time)
        assert start("qmix", "matrix", "t_max=160") == 2
    error = capsys.readouterr().err
    assert "environment worker 0 died" in error
    assert f"go on with resume={models(tmp_path)}" in error
    assert start("qmix", "matrix", "t_max=160", f"resume={models(tmp_path)}") == 0
    assert record(tmp_path, run="2")["result"]["t_env"] == 160


@pytest.mark.parametrize(
    ("algorithm", "environment"), [("cfcql", "matrix_offline"), ("qmix", "matrix")]
)
def test_a_finished_run_that_is_extended_is_the_longer_run(
    start, tmp_path, capsys, algorithm, environment
):
    assert start(algorithm, environment, "t_max=160", results="whole") == 0
    assert start(algorithm, environment, "t_max=80", results="cut") == 0
    resume = f"resume={models(tmp_path, 'cut')}"
    assert start(algorithm, environment, "t_max=160", resume, results="cut") == 0
    assert_same_end(tmp_path, "whole", "cut")
    assert start(algorithm, environment, "t_max=120", resume, results="cut") == 2
    assert "t_max was 160 and is 120" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("algorithm", "environment"), [("macql", "matrix_offline"), ("qmix", "matrix")]
)
def test_training_with_a_checkpoint_goes_on_from_its_weights(
    start, tmp_path, capsys, algorithm, environment
):
    """PyMARL's habit: a new run with the weights and the step of another."""
    assert start(algorithm, environment, "t_max=80", results="first") == 0
    path = f"checkpoint_path={models(tmp_path, 'first')}"
    words = ["t_max=96", "lr=1e-20", path]
    assert start(algorithm, environment, *words) == 0
    assert record(tmp_path)["result"]["tests"][0]["t_env"] == 80
    first, second = (
        th.load(models(tmp_path, results) / step / "agent.th")
        for results, step in (("first", "80"), ("results", "96"))
    )
    assert all(th.equal(first[key], second[key]) for key in first)
    assert start(algorithm, environment, "t_max=80", path) == 2
    assert "t_max: expected more than 80" in capsys.readouterr().err
    assert start(algorithm, environment, *words, "hidden_dim=9") == 2
    assert "does not fit this configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("buffer_size=99999999999", "GiB of memory"),  # before it is asked for
        ("buffer_size=7", "buffer_size: expected at least batch_size=8"),
        ("batch_size=0", "batch_size: expected at least 1"),
    ],
)
def test_a_buffer_that_cannot_be_is_refused(start, capsys, word, message):
    assert start("qmix", "matrix", "t_max=80", word) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_no_longer_finite_fails_and_keeps_its_checkpoints(start, tmp_path, capsys):
    words = ["t_max=160", "save_model_interval=8", "keep_checkpoints=0"]
    assert start("macql", "matrix_offline", *words, "lr=1e20") == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "error: update 2: the step of 'all' is not finite" in error
    assert f"the last checkpoint is {models(tmp_path)}/16" in error
    assert record(tmp_path)["status"] == "FAILED"
    for path in models(tmp_path).glob("*/agent.th"):
        assert all(weights.isfinite().all() for weights in th.load(path).values())


def test_another_configuration_is_not_resumed(start, tmp_path, capsys):
    assert start("bc", "matrix_offline", "t_max=80", "test_nepisode=0") == 0
    resume = f"resume={models(tmp_path)}"
    assert start("bc", "matrix_offline", "t_max=160", "test_nepisode=0", "lr=0.1", resume) == 2
    error = capsys.readouterr().err
    assert "lr was" in error
    assert start("inspo", "matrix_offline", "t_max=80", "test_nepisode=0", resume) == 2
    assert "another alg" in capsys.readouterr().err


# A head start


KEYS = {"mappo": "agent=mlp_ns obs_last_action=False obs_agent_id=False",
        "qmix": "agent=mlp obs_last_action=False"}  # fmt: skip


@pytest.mark.parametrize(("offline", "online"), [("inspo", "mappo"), ("cfcql", "qmix")])
def test_an_online_run_begins_with_an_offline_policy(start, tmp_path, capsys, offline, online):
    """Until its first update it plays as the offline run does; with no rate to speak of, always."""
    assert start(offline, "matrix_offline", "t_max=800", results="first") == 0
    path = f"checkpoint_path={models(tmp_path, 'first')}"
    assert start(online, "matrix", path) == 2
    assert f"add {KEYS[online]}\n" in capsys.readouterr().err
    words = [path, *KEYS[online].split(), "t_max=16", "lr=1e-20"]
    assert start(online, "matrix", *words, results="second") == 0
    before, after = (record(tmp_path, results)["result"] for results in ("first", "second"))
    played = [key for key in before["final"] if "joint" in key or "expected" in key]
    assert len(played) == 5 and after["tests"][0]["t_env"] == 0
    for test in after["tests"]:
        assert {key: test[key] for key in played} == {key: before["final"][key] for key in played}
    first, second = (
        th.load(models(tmp_path, results) / step / "learner.th")["networks"]
        for results, step in (("first", "800"), ("second", "16"))
    )
    for name in second.keys() & {"agent", "mixer", "target_agent", "target_mixer"}:
        own = name.removeprefix("target_")
        assert all(th.equal(first[own][key], second[name][key]) for key in first[own]), name
    assert start(online, "matrix", *words, "map_name=m_ne") == 2
    assert "another map_name" in capsys.readouterr().err
    other = {"mappo": "qmix", "qmix": "mappo"}[online]
    assert start(other, "matrix", path) == 2
    assert "Policies (pi_logits) go on with mappo" in capsys.readouterr().err


# Evaluation and what training needs


def test_evaluate_counts_its_episodes(start, tmp_path, capsys):
    assert start("qmix", "matrix", "t_max=80", "test_nepisode=0", results="trained") == 0
    path = f"checkpoint_path={models(tmp_path, 'trained')}"
    assert start("qmix", "matrix", "evaluate=True", path, "test_nepisode=13") == 0
    result = record(tmp_path)["result"]
    assert (len(result["returns"]), result["lengths"]) == (13, [1] * 13)
    assert not (tmp_path / "results/models").exists()
    assert start("qmix", "matrix", "evaluate=True") == 2
    assert "checkpoint_path is empty" in capsys.readouterr().err
    assert start("qmix", "matrix", "evaluate=True", path, "map_name=m_ne") == 2
    assert "does not fit" in capsys.readouterr().err


def test_the_expected_return_is_exact(start, tmp_path):
    """BC on XOR (c): uniform policies, worth (0 + 1 + 1 - 2) / 4 = 0."""
    words = ["quality=c", "t_max=20000", "batch_size=100", "lr=0.01"]
    assert start("bc", "matrix_offline", *words, "test_interval=20000") == 0
    final = record(tmp_path)["result"]["final"]
    joint = {key[-2:]: final[f"test_joint_{key[-2:]}"] for key in final if "joint" in key}
    payoff = {"00": 0, "01": 1, "10": 1, "11": -2}
    assert sum(joint.values()) == pytest.approx(1)
    expected = sum(payoff[key] * share for key, share in joint.items())
    assert final["test_expected_return"] == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(0, abs=0.05)


def test_training_without_tests_needs_no_simulator(start, tmp_path, monkeypatch):
    """SMAX data on disk, `test_nepisode=0`: an import of jax would fail."""
    facts = {"env": "smax", "map_name": "3m", "env_args": None}
    write_dataset(tmp_path / "d.h5", make_dataset([3, LIMIT, 1, 5] * 6, **facts))
    for name in ("jax", "jaxmarl", "inspo.envs.smax"):
        monkeypatch.setitem(sys.modules, name, None)
    words = ["use_presets=False", "map_name=3m", f"dataset.path={tmp_path / 'd.h5'}", "t_max=300"]
    assert start("inspo", "smax_offline", *words, "test_nepisode=0") == 0
    with pytest.raises(ImportError):
        start("inspo", "smax_offline", *words)


def test_smax_once(start, tmp_path, monkeypatch):
    """Collect a few episodes with an untrained network, clone them, test in the simulator."""
    # Map, number and limit of test_smax.py, so that what is compiled can be shared.
    small = ["map_name=2s3z", "batch_size_run=8", "use_presets=False"]
    words = [*small, "t_max=40", "test_nepisode=4", "final_test_nepisode=4"]
    assert start("qmix", "smax", *words, results="trained") == 0
    final = record(tmp_path, "trained")["result"]["final"]
    assert {"test_battle_won_mean", "test_return_mean", "test_ep_length_mean"} <= set(final)
    path = f"collect.path={tmp_path / 'smax.h5'}"
    checkpoint = f"checkpoint_path={models(tmp_path, 'trained')}"
    words = [*small, checkpoint, path, "collect.n_episodes=10", "test_epsilon=0.3"]
    assert start("qmix", "smax", *words, results="collected") == 0
    words = [*small, f"dataset.path={tmp_path / 'smax.h5'}", "t_max=120", "test_nepisode=4"]
    assert start("inspo", "smax_offline", *words, results="cloned") == 0
    result = record(tmp_path, "cloned")["result"]
    assert result["dataset"]["episodes"] == 10
    assert len(result["battle_won"]) == 10
