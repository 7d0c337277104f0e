"""SMAX as a batched simulator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from inspo.envs.drawing import draw_smax
from inspo.envs.smax import SMAXVectorEnv, _build_program

N = 8  # one N and one limit for all that is stepped, so that it compiles once
STOP = 4
SRC = Path(__file__).resolve().parents[1] / "package"
SHAPES = {  # map: allies, enemies, actions, obs, state
    "2s3z": (5, 5, 10, 127, 120),
    "3s_vs_5z": (3, 5, 10, 101, 96),
    "5m_vs_6m": (5, 6, 11, 140, 132),
    "6h_vs_8z": (6, 8, 13, 179, 168),
    "5m_vs_5m": (5, 5, 10, 127, 120),
}


def make(**kwargs) -> SMAXVectorEnv:
    return SMAXVectorEnv(**{"map_name": "2s3z", "n_envs": N, **kwargs})


def random_actions(avail: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(avail.shape) * avail).argmax(-1)


def play(env: SMAXVectorEnv, choose, late: int = 0) -> dict[str, np.ndarray]:
    """One episode in each environment; every array that came out, stacked over time `[T, N, ...]`.

    `ended` counts how often each environment said that it ended, `length` its steps. late: so many
    steps of the limit are over when it begins (another limit would compile another program).
    """
    env.reset()
    state = env._episodes["state"]
    env._episodes["state"] = state.replace(state=state.state.replace(step=state.state.step + late))
    active, frames = np.ones(env.n_envs, dtype=bool), []
    length, ended = np.zeros(env.n_envs, dtype=int), np.zeros(env.n_envs, dtype=int)
    while active.any():
        seen = env.observe()
        actions = choose(seen)
        out = env.step(actions)
        seen |= {"reward": out.reward, "terminated": out.terminated, "truncated": out.truncated}
        frames.append({**seen, **out.info, "active": active.copy(), "actions": actions})
        length += active
        ended += out.terminated.astype(int) + out.truncated
        active &= ~(out.terminated | out.truncated)
    record = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
    return {**record, "length": length, "ended": ended}


def play_random(env: SMAXVectorEnv, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return play(env, lambda seen: random_actions(seen["avail_actions"], rng))


def focus_fire(seen: dict[str, np.ndarray]) -> np.ndarray:
    """Attack the first enemy in range, else walk to the right, where the enemies come from."""
    avail = seen["avail_actions"]
    attack, right = STOP + 1 + avail[..., STOP + 1 :].argmax(-1), 1
    walk = np.where(avail[..., right] > 0, right, STOP)  # the dead may only stop
    return np.where(avail[..., STOP + 1 :].any(-1), attack, walk)


@pytest.fixture(scope="module")
def played() -> tuple[SMAXVectorEnv, dict[str, np.ndarray]]:
    """An environment after one episode of focus fire in each battle."""
    env = make()
    return env, play(env, focus_fire)


@pytest.mark.parametrize("map_name", SHAPES)
def test_shapes(map_name):
    env = SMAXVectorEnv(map_name)
    allies, enemies, *shapes = SHAPES[map_name]
    assert (env.n_agents, env.n_enemies) == (allies, enemies)
    keys = ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")
    assert env.get_env_info() == dict(zip(keys, (allies, *shapes, 101)))
    assert env.simulator.startswith("jaxmarl 0.2")


def test_observe_gives_fresh_writable_arrays_in_range():
    env = make()
    env.reset()
    seen, info = env.observe(), env.get_env_info()
    assert seen["state"].shape == (N, info["state_shape"])
    assert seen["obs"].shape == (N, env.n_agents, info["obs_shape"])
    assert seen["avail_actions"].shape == (N, env.n_agents, info["n_actions"])
    assert [seen[k].dtype for k in ("state", "obs", "avail_actions")] == ["f4", "f4", "i4"]
    seen["obs"][:] = 7.0  # ours to change: the next call is not touched
    assert np.abs(env.observe()["obs"]).max() <= 1.0


def test_values_are_scaled_as_in_smac_and_a_win_is_read_from_the_state(played):
    env, record = played
    assert record["state"].min() >= 0.0 and record["state"].max() <= 1.0
    assert np.abs(record["obs"]).max() <= 1.0 + 1e-6
    returns, won = record["reward"].sum(0), record["battle_won"].sum(0)
    assert 0 < won.sum() <= N
    np.testing.assert_allclose(returns[won == 1], 20.0, rtol=1e-4)
    assert (returns[won == 0] < 10.0 + 1e-3).all()
    # The terminal state, read by hand: the health of each unit is its first feature.
    n_units, features = env.n_agents + env.n_enemies, len(env.program.smax.own_features)
    health = env.observe()["state"][:, : n_units * features].reshape(N, n_units, features)[..., 0]
    allies, enemies = np.split(health > 0, [env.n_agents], axis=1)
    np.testing.assert_array_equal(won, allies.any(1) & ~enemies.any(1))
    last = record["length"] - 1
    np.testing.assert_array_equal(record["dead_enemies"][last, range(N)], (~enemies).sum(1))
    np.testing.assert_array_equal(record["dead_allies"][last, range(N)], (~allies).sum(1))


def test_each_battle_ends_once_and_is_silent_afterwards(played):
    _, record = played
    assert (record["ended"] == 1).all()
    assert len(set(record["length"])) > 1, "this test needs battles of different lengths"
    over = ~record["active"]
    assert not record["terminated"][over].any() and not record["truncated"][over].any()
    for name in ("reward", "battle_won", "dead_allies", "dead_enemies"):
        assert (record[name][over] == 0).all() and record[name].dtype == np.float32
    first = int(record["length"].argmin())
    for name in ("state", "obs", "avail_actions"):  # frozen
        terminal = record[name][record["length"][first] :, first]
        assert len(terminal) > 1 and (terminal == terminal[0]).all()


def test_the_dead_may_only_stop_and_see_nothing(played):
    _, record = played
    dead = (record["obs"] == 0).all(-1)
    assert dead.any()
    np.testing.assert_array_equal(
        record["avail_actions"][dead], np.tile(np.eye(10, dtype=np.int32)[STOP], (dead.sum(), 1))
    )
    assert (record["avail_actions"][..., STOP] == 1).all()
    assert (record["avail_actions"][~dead][:, : STOP + 1] == 1).all()


def test_the_limit_truncates_at_exactly_episode_limit():
    env = make()
    assert env.episode_limit == make(max_steps=100).episode_limit == 101
    record = play(env, lambda seen: np.full((N, env.n_agents), STOP), late=93)
    np.testing.assert_array_equal(record["length"], 8)
    assert record["truncated"][-1].all() and not record["truncated"][:-1].any()
    assert not record["terminated"].any() and not record["battle_won"].any()
    before = env.observe()
    env.step(np.full((N, env.n_agents), 99))  # the actions of finished battles are ignored
    for name, value in env.observe().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_terminal_at_the_limit_is_no_truncation(played):
    """The same battles again, so late that the first win falls into the very last step."""
    env, record = make(), played[1]
    winner = int(np.where(record["battle_won"].any(0), record["length"], 10**6).argmin())
    cut = play(env, focus_fire, late=env.episode_limit - int(record["length"][winner]))
    assert cut["length"][winner] == record["length"][winner] == cut["length"].max()
    assert cut["terminated"][-1, winner] and cut["battle_won"][-1, winner]
    assert not cut["truncated"][-1, winner] and cut["truncated"][-1].any()


def test_a_battle_can_be_drawn(played):
    env, record = played
    episode = {key: record[key][:, 0] for key in ("state", "obs", "avail_actions")}
    episode["actions"] = record["actions"][:, 0, :, None]
    ax = Figure().subplots()
    draw_smax(ax, env, episode, 0)
    assert ax.get_xlabel().startswith("5 allies (blue), 5 enemies (red)")
    draw_smax(ax, env, episode, len(episode["state"]) - 1)


def test_same_seed_same_episodes_and_the_stream_can_be_carried_over():
    env = make(seed=3)
    first = play_random(env)
    rng = env.get_rng()
    second = play_random(env)
    twin = make(seed=3)
    again = play_random(twin)
    late = make(seed=4)
    late.set_rng(rng)
    resumed = play_random(late)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(second[name], resumed[name])
    assert not np.array_equal(first["state"][0], second["state"][0])
    assert all(isinstance(word, int) for word in rng)
    starts = np.concatenate([play["state"][0] for play in (first, play_random(make(seed=4)))])
    assert len(np.unique(starts, axis=0)) == 2 * N  # each environment and seed has its own


def test_step_compiles_once():
    """Twice would mean that the first step's carry differs in (weak) type from the later ones."""
    env = make()
    for _ in range(2):
        play_random(env)
    program = _build_program("2s3z", 100, 10.0, True, True, "closest")
    assert program is env.program, "environments of one configuration share what is compiled"
    assert program.step._cache_size() == 1 and program.reset._cache_size() == 1


def test_errors_name_what_is_wrong():
    env = make()
    env.reset()
    actions = np.full((N, env.n_agents), STOP)
    for action in (9, 10, -1):  # no enemy is in range at the start; no such action
        actions[2, 1] = action
        with pytest.raises(ValueError, match=rf"environment 2, agent 1: action {action} "):
            env.step(actions)


def test_import_is_quiet_and_leaves_stdout_alone():
    code = (
        "import sys; out, err = sys.stdout, sys.stderr = [open('/dev/null', 'w') for _ in '12']\n"
        "from inspo.envs.smax import SMAXVectorEnv; SMAXVectorEnv()\n"
        "assert (sys.stdout, sys.stderr) == (out, err)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=SRC, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
