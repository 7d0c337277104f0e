"""Runners over a toy environment that keeps its own record of what happened."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th
from cases import make_args
from toy_env import ToyEnv

from inspo import envs
from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.envs import process_vector
from inspo.envs.process_vector import SerialVectorEnv
from inspo.runners import REGISTRY
from inspo.utils.errors import ConfigError, EnvironmentFailure

KINDS = ["vector", "episode", "parallel"]


@pytest.fixture
def make_runner(monkeypatch, tmp_path):
    """make_runner(kind, seed=3, n=.., failures=1, **env_args): a runner with a random policy.

    Closed after. failures: how many in a row end it. Nothing waits before a restart.
    """
    monkeypatch.setattr(process_vector, "FIRST_PAUSE", 0.0)
    monkeypatch.setitem(envs.REGISTRY, "toy", ToyEnv)
    monkeypatch.setitem(
        envs.VECTOR_REGISTRY,
        "toy",
        lambda n_envs, **kw: SerialVectorEnv([partial(ToyEnv, **kw)] * n_envs),
    )
    made = []

    def make(kind, seed=3, n=None, failures=1, **env_args):
        n = (1 if kind == "episode" else 2) if n is None else n
        env_args = {"map_name": "toy", "log_dir": str(tmp_path)} | env_args
        args = make_args("bc", "matrix", seed=seed, agent="mlp")
        args.env, args.env_args, args.runner = "toy", env_args, kind
        args.batch_size_run, args.test_greedy = n, False
        args.env_max_failures = failures
        runner = REGISTRY[kind](args, None)
        made.append(runner)
        vars(args).update(runner.get_env_info())
        scheme = build_scheme(runner.get_env_info())
        th.manual_seed(0)
        mac = mac_REGISTRY["basic_mac"](scheme, {"agents": 2}, args)
        runner.setup(scheme, {"agents": 2}, None, mac)
        return runner

    yield make
    for runner in made:
        runner.close_env()
    assert not multiprocessing.active_children()


def records(folder):
    """(seed of the episode) -> the environment's own record; an episode is played once."""
    found = {}
    for path in folder.glob("*.json"):
        number = int(path.name.split("_")[0])
        assert number not in found
        found[number] = json.loads(path.read_text())
    return found


def assert_equal_to_record(batch, e, record):
    length = len(record["reward"])
    assert batch["filled"][e, :, 0].tolist() == [1] * (length + 1) + [0] * (
        batch.max_seq_length - length - 1
    )
    for key, name in (("state", "state"), ("obs", "obs"), ("avail_actions", "avail")):
        assert np.array_equal(
            batch[key][e, : length + 1].numpy(), np.array(record[name], dtype=np.float32)
        )
    assert batch["actions"][e, :length, :, 0].tolist() == record["actions"]
    assert batch["reward"][e, :length, 0].tolist() == record["reward"]
    ended = [0] * batch.max_seq_length
    ended[length - 1] = int(record["terminated"])
    assert batch["terminated"][e, :, 0].tolist() == ended
    for key in ("state", "obs", "avail_actions"):
        assert (batch[key][e, length + 1 :] == 0).all()
    for key in ("actions", "reward"):
        assert (batch[key][e, length:] == 0).all()


def number_of(batch, e):
    return int(batch["state"][e, 0, 0])


def assert_told(runner, batches, log):
    """Every episode of `log` is in the batches and in the statistics, once and in order."""
    stats = runner.train_stats
    episodes = [(batch, e) for batch in batches for e in range(batch.batch_size)]
    assert len(log) == len(episodes) == len(stats)
    for k, (batch, e) in enumerate(episodes):
        record = log[number_of(batch, e)]
        assert_equal_to_record(batch, e, record)
        assert stats.returns[k] == pytest.approx(sum(record["reward"]), abs=1e-5)
        assert stats.lengths[k] == len(record["reward"])
        assert stats.infos["battle_won"][k] == float(record["reward"][-1] > 0)
    assert runner.t_env == sum(stats.lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_what_the_environment_says(make_runner, tmp_path, kind):
    runner = make_runner(kind)
    batches, log = [runner.run() for _ in range(10)], records(tmp_path)
    assert all(batch.max_seq_length == 5 for batch in batches)
    assert_told(runner, batches, log)
    ends = [(record["terminated"], record["truncated"]) for record in log.values()]
    assert {(True, False), (False, True)} <= set(ends)  # both kinds of end have been seen


def test_an_end_at_the_limit_that_is_a_true_end_is_a_true_end(make_runner, tmp_path):
    runner = make_runner("vector", n=8)
    batches = [runner.run() for _ in range(6)]
    log = records(tmp_path)
    ends = [
        int(batch["terminated"][e, 3, 0])
        for batch in batches
        for e in range(8)
        if all(log[number_of(batch, e)][key] for key in ("terminated", "truncated"))
    ]
    assert ends and all(ends)


@pytest.mark.parametrize("kind", ["vector", "episode"])
def test_exactly_n_test_episodes_and_no_leak(make_runner, tmp_path, kind):
    runner = make_runner(kind)
    runner.run()
    before = (list(runner.train_stats.returns), runner.t_env)
    stats = runner.test(5)
    assert (len(stats), len(stats.lengths), len(stats.infos["battle_won"])) == (5, 5, 5)
    assert (list(runner.train_stats.returns), runner.t_env) == before
    log = records(tmp_path)
    played = {tuple(np.float32(r["reward"]).tolist()): None for r in log.values()}
    returns = [sum(rewards) for rewards in played]
    assert all(min(abs(x - r) for r in returns) < 1e-5 for x in stats.returns)
    assert not set(stats.returns) & set(before[0])  # none from training

    summary = stats.summary("test_")
    assert summary["test_episodes"] == 5
    assert summary["test_return_mean"] == pytest.approx(np.mean(stats.returns))
    assert summary["test_return_std"] == pytest.approx(np.std(stats.returns))
    assert summary["test_ep_length_mean"] == pytest.approx(np.mean(stats.lengths))
    assert summary["test_battle_won_mean"] == pytest.approx(np.mean(stats.infos["battle_won"]))
    again = runner.test(3)
    assert len(again) == 3
    assert not set(again.returns) & set(stats.returns)  # none stale
    runner.run()
    assert len(runner.train_stats) == 2 * runner.batch_size


def test_one_seed_one_story_and_each_environment_its_own(make_runner, tmp_path):
    def play(seed):
        folder = tmp_path / f"{seed}_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        runner = make_runner("vector", seed=seed, log_dir=str(folder))
        th.manual_seed(1)
        return [runner.run() for _ in range(3)]

    first, second, other = play(3), play(3), play(4)
    for a, b in zip(first, second):
        assert all(th.equal(a[key], b[key]) for key in a.data)
    numbers = [number_of(b, e) for b in first + other for e in range(b.batch_size)]
    assert len(set(numbers)) == len(numbers)  # every episode of every environment is another


@pytest.mark.parametrize("kind", ["vector", "parallel"])
def test_a_restored_runner_goes_on_the_same_way(make_runner, tmp_path, kind):
    for name in "ab":
        (tmp_path / name).mkdir()
    runner = make_runner(kind, log_dir=str(tmp_path / "a"))
    runner.run()
    runner.test(1)
    state, torch_state = runner.state_dict(), th.get_rng_state()
    path = tmp_path / "state.th"
    th.save(state, path)
    twin = make_runner(kind, seed=77, log_dir=str(tmp_path / "b"))
    twin.load_state_dict(th.load(path, weights_only=True))
    after = []
    for part in (runner, twin):
        th.set_rng_state(torch_state)
        after.append((part.run(), part.t_env, part.train_stats.summary()))
    (a, *rest), (b, *other) = after
    assert all(th.equal(a[key], b[key]) for key in a.data)
    assert rest == other


# Environments that fail


@pytest.mark.parametrize(
    ("crash", "words"),
    [
        ("raise", ["environment worker 0 failed", "ValueError: the toy broke"]),
        ("exit", ["environment worker 0 died", "exit code 7"]),
        ("init", ["worker 0 failed", "no such simulator"]),
    ],
)
def test_a_failure_too_many_is_one_clear_error(make_runner, crash, words):
    with pytest.raises(EnvironmentFailure) as caught:
        runner = make_runner("parallel", n=1, crash=crash, crash_at=1, child=crash != "init")
        runner.run()
    if crash != "init":
        words = [*words, "in a row: 1 (env_max_failures: 1)", "the game says hello"]
    for word in words:
        assert word in str(caught.value)


def test_what_the_user_must_put_right_is_not_tried_again(make_runner):
    with pytest.raises(ConfigError, match=r"^no game here$"):
        make_runner("parallel", n=1, failures=3, crash="refuse")


def gone(pids, patience=10.0):
    """Whether all these processes end in time (a zombie has ended)."""

    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.monotonic() + patience
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def pids_in(folder):
    return [int(pid) for path in folder.glob("*.pids") for pid in path.read_text().split()]


def test_a_hanging_environment_is_killed_with_what_it_started(make_runner, tmp_path):
    runner = make_runner("parallel", n=1, crash="hang", crash_at=1, child=True)
    runner.env.reset()
    runner.env._timeout = 0.2  # not before: a process takes longer to start
    pids = pids_in(tmp_path)
    with pytest.raises(EnvironmentFailure, match=r"hangs: no answer to 'step' within 0.2 s"):
        runner.env.step(np.zeros((1, 2), dtype=int))
    assert len(pids) == 2
    assert gone(pids)


def test_lost_episodes_are_played_anew(make_runner, tmp_path):
    """Each process dies in its 7th step; whole batches, exact counts, nothing of the lost ones."""
    runner = make_runner("parallel", failures=2, crash="exit", crash_at=7)
    batches, stats = [runner.run() for _ in range(4)], runner.train_stats
    assert_told(runner, batches, records(tmp_path))
    assert stats.summary()["episodes_lost"] == stats.n_lost > 0
    tested = runner.test(3)
    assert (len(tested), len(tested.lengths)) == (3, 3)
    assert len(stats) == 8


def test_workers_killed_between_two_episodes_lose_none(make_runner, tmp_path):
    runner = make_runner("parallel", failures=2, child=True)
    runner.run()
    pids = pids_in(tmp_path)
    assert len(set(pids)) == 4 and os.getpid() not in pids
    terminated, killed = (worker.process.pid for worker in runner.env._workers)
    os.kill(terminated, signal.SIGTERM)  # takes what it started with it
    os.kill(killed, signal.SIGKILL)
    assert gone([terminated, killed])
    child = next(int(p.read_text().split()[1]) for p in tmp_path.glob(f"{terminated}.pids"))
    assert gone([child])
    runner.run()
    assert gone(pids)
    assert (len(runner.train_stats), runner.train_stats.n_lost) == (4, 0)


PARENT = """
import signal, sys, time
from functools import partial
from toy_env import ToyEnv
from inspo.envs.process_vector import ProcessVectorEnv
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    env = ProcessVectorEnv([partial(ToyEnv, log_dir=sys.argv[1], child=True)] * 2)
    env.seed(0)
    env.reset()
    print(env._folder, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_program(tmp_path, signum):
    (tmp_path / "parent.py").write_text(PARENT)
    here = Path(__file__).parent
    paths = {"PYTHONPATH": f"{here}:{here.parent / 'package'}", "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", tmp_path], env={**os.environ, **paths},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        folder = Path(parent.stdout.readline().strip())
        pids = pids_in(tmp_path)
        assert folder.is_dir() and len(pids) == 4 and not gone(pids, patience=0.0)
        parent.send_signal(signum)
        assert gone(pids)
        parent.wait(timeout=10)
        assert folder.exists() == (signum == signal.SIGKILL)  # who is killed cannot tidy up
    finally:
        parent.kill()
        parent.stdout.close()
        parent.wait()
        assert gone(pids_in(tmp_path), patience=1.0)


@pytest.mark.parametrize("kind", ["parallel", "episode"])
def test_a_runner_that_does_not_fit_is_one_clear_error(make_runner, monkeypatch, kind):
    with pytest.raises(ConfigError, match="batch_size_run=1"):
        make_runner("episode", n=2)
    make = envs.REGISTRY["toy"]
    monkeypatch.delitem(envs.REGISTRY, "toy")
    with pytest.raises(ConfigError, match=f"'{kind}' cannot play .*runner=vector"):
        make_runner(kind)
    monkeypatch.setitem(envs.REGISTRY, "toy", make)
    monkeypatch.delitem(envs.VECTOR_REGISTRY, "toy")
    with pytest.raises(ConfigError, match=r"'vector' cannot play .*runner=parallel"):
        make_runner("vector")
