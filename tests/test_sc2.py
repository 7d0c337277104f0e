"""StarCraft II: the adapter over a stand-in of SMAC, the known shapes, the errors.

Where the real package is importable, the shapes are held to it as well.
"""

import importlib.util
import inspect
import random
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
from test_dataset import make_dataset

from inspo import main as program
from inspo.envs.sc2 import MAPS, SHAPING, SC2Env, env_info, fitting
from inspo.offline import write_dataset
from inspo.utils.config import load_config
from inspo.utils.errors import ConfigError, EnvironmentFailure

SMAC = importlib.util.find_spec("smac") and importlib.util.find_spec("pysc2")

# map: agents, actions, observation, state, state without last actions, limit (measured on SMAC)
MEASURED = {
    "2s3z": (5, 11, 80, 120, 65, 120),
    "3s_vs_5z": (3, 11, 48, 68, 35, 250),
    "5m_vs_6m": (5, 12, 55, 98, 38, 70),
    "6h_vs_8z": (6, 14, 78, 140, 56, 150),
}


def env_args(*words) -> dict:
    argv = ["--config=qmix", "--env-config=sc2", "with", *words]
    return load_config(argv).values["env_args"]


FITS = env_info(**env_args("map_name=5m_vs_6m"))


class StandIn:
    """Behaves as StarCraft2Env does, as far as anybody outside can see, on a plan.

    A battle lasts `plan[k]` = (steps, end); ends: `won`, `lost`, `draw`, `timeout`, `crash`.
    The limit is 4. An action is its own reward; observations tell the battle and the step.
    """

    plan = ((3, "won"), (2, "lost"), (4, "timeout"), (4, "won"), (1, "draw"), (2, "crash"))

    def __init__(self, map_name="8m", seed=None, continuing_episode=False, state_last_action=True,
                 replay_dir="", replay_prefix="", game_version=None):  # fmt: skip
        self.n_agents, self.episode_limit = 2, 4
        self.continuing_episode, self._seed = continuing_episode, seed
        self.timeouts = self.battles_game = self.battles_won = 0
        self.battle, self.launches, self.closed, self.replays = -1, [], 0, 0

    def get_env_info(self):
        return {
            "state_shape": 2, "obs_shape": 3, "n_actions": 5, "n_agents": 2, "episode_limit": 4,
            "agent_features": ["health"],
        }  # fmt: skip

    def full_restart(self):
        self.launches.append(("again", self._seed))

    def reset(self):
        if not self.launches:
            self.launches.append(("first", self._seed))
        self.battle += 1
        self.t = 0
        return self.get_obs(), self.get_state()

    def step(self, actions):
        assert all(type(a) is int for a in actions)
        length, end = self.plan[self.battle % len(self.plan)]
        if end == "crash" and self.t + 1 == length:
            self.full_restart()
            return 0, True, {}
        self.t += 1
        info = {"battle_won": False, "dead_allies": self.t % 2, "dead_enemies": np.int64(self.t)}
        ended = self.t == length
        if ended:
            self.battles_game += 1
            info["battle_won"] = end == "won"
            self.battles_won += end == "won"
            self.timeouts += end == "timeout"
            if end == "timeout" and self.continuing_episode:
                info["episode_limit"] = True
        return np.float64(sum(actions)), ended, info

    def get_obs(self):
        return [np.array([self.battle, self.t, i], dtype=np.float32) for i in range(2)]

    def get_state(self):
        return np.array([self.battle, self.t], dtype=np.float64)

    def get_avail_actions(self):
        return [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]

    def get_stats(self):
        return {"win_rate": self.battles_won / self.battles_game}

    def save_replay(self):
        self.replays += 1

    def close(self):
        self.closed += 1


@pytest.fixture
def game(monkeypatch, tmp_path):
    """The folder of a game that has the map 5m_vs_6m, with the stand-in as SMAC."""
    module = types.ModuleType("smac.env")
    module.StarCraft2Env = StandIn
    monkeypatch.setitem(sys.modules, "smac", types.ModuleType("smac"))
    monkeypatch.setitem(sys.modules, "smac.env", module)
    folder = tmp_path / "game"
    for name in ("Versions/Base69232/SC2_x64", "Versions/Base75689/SC2_x64",
                 "Maps/SMAC_Maps/5m_vs_6m.SC2Map"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x7fELF")
    monkeypatch.setenv("SC2PATH", str(folder))
    return folder


# The adapter


@pytest.mark.parametrize("continuing", [False, True])
def test_a_timeout_is_truncated_and_nothing_else_is(game, continuing):
    env = SC2Env("5m_vs_6m", continuing_episode=continuing)
    for battle, (length, end) in enumerate(StandIn.plan[:5]):
        obs, _ = env.reset(seed=battle)
        assert [o.tolist() for o in obs] == [[battle, 0, 0], [battle, 0, 1]]
        for t in range(1, length + 1):
            obs, reward, terminated, truncated, info = env.step(np.array([1, 4]))
            assert [o.tolist() for o in obs] == [o.tolist() for o in env.get_obs()]
            assert obs[1].tolist() == [battle, t, 1]
            assert reward == 5
            last = t == length
            assert terminated == (last and end != "timeout")
            assert truncated == (last and end == "timeout")
            assert info == {
                "battle_won": float(last and end == "won"),
                "timeout": float(truncated),
                "dead_allies": t % 2,
                "dead_enemies": t,
            }
            assert all(type(value) is float for value in info.values())
    assert env.get_stats() == {"battles_game": 5, "battles_won": 2}


def test_a_broken_game_is_an_error_and_no_defeat(game):
    env = SC2Env("5m_vs_6m")
    for _ in range(6):
        env.reset(seed=1)
    env.step([1, 4])
    with pytest.raises(EnvironmentFailure, match="crashed"):
        env.step([1, 4])
    assert [what for what, _ in env._game.launches] == ["first"]  # SMAC has started no other


def test_shapes_seeds_and_the_rest_of_the_interface(game):
    env = SC2Env("5m_vs_6m", replay_dir="mine")
    assert env.get_env_info() == {
        "state_shape": 2, "obs_shape": 3, "n_actions": 5, "n_agents": 2, "episode_limit": 4,
    }  # fmt: skip
    assert (env.n_agents, env.episode_limit) == (2, 4)
    assert env.get_stats() == {"battles_game": 0, "battles_won": 0}  # SMAC would divide by 0
    env.reset(seed=11)
    env.reset(seed=12)  # a game is seeded once
    assert env._game.launches == [("first", 11)]
    assert (env._game.battle, env.get_state().dtype) == (1, np.float32)
    assert env.get_avail_actions().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    assert env.save_replay() == str(game / "Replays/mine")
    assert env._game.replays == 1
    env.close()
    assert env._game.closed == 1
    assert env.describe() == "StarCraft II build 75689, SMAC"
    (game / "Versions/Base75689/SC2_x64").write_text("#!a script")
    assert env.describe() == "a stand-in for StarCraft II build 75689, SMAC"

    fixed = SC2Env("5m_vs_6m", seed=5)
    fixed.reset(seed=11)
    assert fixed._game.launches == [("first", 5)]


# Shapes without the game


@pytest.mark.parametrize("name", MEASURED)
def test_shapes_of_the_papers_maps(name):
    agents, actions, obs, state, short_state, limit = MEASURED[name]
    expected = {"state_shape": state, "obs_shape": obs, "n_actions": actions, "n_agents": agents,
                "episode_limit": limit}  # fmt: skip
    assert env_info(**env_args(f"map_name={name}")) == expected
    short = env_args(f"map_name={name}", "env_args.state_last_action=False")
    assert env_info(**short) == {**expected, "state_shape": short_state}


def test_the_yaml_file_has_all_the_maps():
    with pytest.raises(ConfigError, match="Did you mean '5m_vs_6m'") as caught:
        env_args("map_name=5m_vs_6n")
    listed = str(caught.value).rpartition("Known: ")[2]
    assert set(listed.split(", ")) == set(MAPS)


@pytest.mark.skipif(not SMAC, reason="the package smac is not installed")
def test_shapes_and_defaults_are_those_of_the_real_package():
    from smac.env import StarCraft2Env

    drawn = random.Random(0)
    keys = ("state_shape", "obs_shape", "n_actions", "n_agents", "episode_limit")
    for name in MAPS:
        plain = dict.fromkeys(SHAPING, False)
        for flags in [plain, *({k: drawn.random() < 0.5 for k in SHAPING} for _ in range(30))]:
            real = StarCraft2Env(map_name=name, **flags).get_env_info()
            assert env_info(name, **flags) == {key: real[key] for key in keys}, (name, flags)
    real = {k: p.default for k, p in inspect.signature(StarCraft2Env).parameters.items()}
    assert {**env_args(), "map_name": None} == {**real, "map_name": None}


def test_the_setting_that_fits_is_named():
    own = env_args("map_name=5m_vs_6m")

    def advice(*words):
        return fitting(env_info(**env_args(*words)), own)

    no_actions = advice("map_name=5m_vs_6m", "env_args.state_last_action=False")
    assert no_actions == "To use these data: with env_args.state_last_action=False"
    assert advice("map_name=2s3z") == "To use these data: with map_name=2s3z"
    both = advice("map_name=6h_vs_8z", "env_args.obs_last_action=True")
    assert both == "To use these data: with map_name=6h_vs_8z env_args.obs_last_action=True"
    omiga = {**env_info(**env_args("map_name=6h_vs_8z")), "obs_shape": 172}
    words = fitting(omiga, env_args("map_name=6h_vs_8z"))
    assert "OMIGA" in words and "download cfcql/6h_vs_8z" in words


# Errors


def error_of(**kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        SC2Env("5m_vs_6m", **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("missing", ["folder", "program", "map", "smac"])
def test_what_is_missing_is_named_with_the_ways_on(game, monkeypatch, missing):
    place = game / "Maps/SMAC_Maps/5m_vs_6m.SC2Map"
    if missing == "folder":
        monkeypatch.setenv("SC2PATH", str(game / "nowhere"))
        named = [str(game / "nowhere"), "SC2PATH"]
    elif missing == "program":
        for path in game.glob("Versions/*/SC2_x64"):
            path.unlink()
        named = [str(game), "Versions/Base*/SC2_x64"]
    elif missing == "map":
        place.unlink()
        named = [str(place)]
    else:
        monkeypatch.setitem(sys.modules, "smac.env", None)
        named = ["smac.env", "requirements-sc2.txt", "PyPI"]
    message = error_of()
    assert all(w in message for w in [*named, "docker/run.sh", "test_nepisode=0", "smax_offline"])


def test_an_argument_that_does_not_fit_is_one_clear_error(game, monkeypatch):
    def get(version):
        raise ValueError(f"Unknown game version: {version}")

    pysc2 = types.ModuleType("pysc2")
    pysc2.run_configs = SimpleNamespace(get=get)
    monkeypatch.setitem(sys.modules, "pysc2", pysc2)
    assert "env_args.game_version: 1.2: Unknown game version" in error_of(game_version="1.2")
    assert "belong into env_args.replay_dir" in error_of(replay_prefix="a/b")
    assert "no argument unheard_of" in error_of(unheard_of=1)


def write_data(path, map_name, info):
    """Random episodes of one step with the numbers `info`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dataset(path, make_dataset([1] * 12, env="sc2", map_name=map_name, env_args=None, **info))


@pytest.fixture
def offline(tmp_path):
    """offline(*words): the exit status of BC on data of 5m_vs_6m, `datasets_dir` is tmp_path."""
    argv = ["--config=bc", "--env-config=sc2_offline", "with", "use_cuda=False", "seed=1"]
    argv += ["hidden_dim=8", "batch_size=4", "use_presets=False", "use_progress_bar=False"]
    argv += ["map_name=5m_vs_6m", "t_max=40", f"datasets_dir={tmp_path}"]
    return lambda *words: program.main([*argv, f"local_results_path={tmp_path / 'r'}", *words])


def test_training_at_the_default_place_without_the_game(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    path = tmp_path / "sc2/5m_vs_6m_medium.h5"
    assert offline("test_nepisode=0") == 2
    error = capsys.readouterr().err
    assert str(path) in error and "python src/dataset.py download cfcql/5m_vs_6m" in error
    write_data(path, "5m_vs_6m", FITS)
    assert offline("test_nepisode=0") == 0
    capsys.readouterr()
    assert offline("batch_size_run=1") == 2
    assert "test_nepisode=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "changes", "named"),  # of the data, and what the error names
    [
        (["map_name=5m_vs_6m", "env_args.state_last_action=False"], {},
         ["state_shape is 38 in the data and 98", "with env_args.state_last_action=False"]),
        (["map_name=2s3z"], {},
         ["'2s3z'", "n_actions is 11 in the data and 12", "with map_name=2s3z"]),
        (["map_name=5m_vs_6m"], {"obs_shape": 124},
         ["obs_shape is 124 in the data and 55", "OMIGA"]),
    ],
    ids=["settings", "map", "SMAC"],
)  # fmt: skip
def test_data_of_another_variant_are_refused(offline, tmp_path, capsys, words, changes, named):
    path, map_name = tmp_path / "d.h5", words[0].partition("=")[2]
    write_data(path, map_name, env_info(**env_args(*words)) | changes)
    assert offline(f"dataset.path={path}", "test_nepisode=0") == 2
    error = capsys.readouterr().err
    assert all(word in error for word in [*named, str(path)])
