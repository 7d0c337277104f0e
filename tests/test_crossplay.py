"""Cross-play: which mixtures are played, by whom, what they come to, and what is refused."""

import json
import math
import re

import numpy as np
import pytest
import torch as th

from inspo import crossplay as program
from inspo.components.episode_batch import EpisodeBatch, build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.estimation import crossplay
from inspo.estimation.crossplay import Mixture, Script, Task, mixtures_of, summarise, without_clash
from inspo.experiments.crossplay import verdict
from inspo.offline import spread_data
from inspo.utils.checkpoints import save_checkpoint
from inspo.utils.config import load_config
from inspo.utils.errors import CheckpointError, ConfigError
from inspo.utils.settings import Settings

XOR = {"state_shape": 1, "obs_shape": 1, "n_actions": 2, "n_agents": 2, "episode_limit": 1}
ALWAYS = 20.0  # a logit that decides


def save_team(folder, actions, map_name="xor", info=XOR, **env_args):
    """A run's model folder, whose agents always play `actions`."""
    words = [f"env_args.{key}={value}" for key, value in env_args.items()]
    argv = ["--config=alberdice", "--env-config=matrix", "with", f"map_name={map_name}", *words]
    values = load_config([*argv, "agent=mlp_ns", "hidden_dim=4", "obs_last_action=False"]).values
    args = Settings(values, {**info, "device": "cpu"})
    mac = mac_REGISTRY[args.mac](build_scheme(info), {}, args)
    with th.no_grad():
        for parameter in mac.parameters():
            parameter.zero_()
        for i, action in enumerate(actions):
            list(mac.agent.agent(i).parameters())[-1][..., action] = ALWAYS
    text = {"alg": "alberdice", "env": "matrix", "map_name": map_name, "config": values}
    return save_checkpoint(folder, 10, {"agent.th": mac.agent.state_dict()}, text).parent


def test_the_mixtures_of_two_teams_are_all_that_there_are():
    assert mixtures_of(2, 2, 8, 0) == [(0, 0), (1, 1), (0, 1), (1, 0)]
    three = mixtures_of(3, 3, 8, 0)
    assert len(set(three)) == len(three) == 3 + 6 * 3
    assert all(len(set(mixture)) <= 2 for mixture in three)
    few = mixtures_of(2, 5, 4, 0)
    assert len(few) == 2 + 2 * 4 and set(few) < set(mixtures_of(2, 5, 15, 0))


def test_what_mixtures_come_to():
    teams = [((0, 0, 0), -10.0), ((1, 1, 1), -14.0)]
    mixed = [((0, 0, 1), -20.0), ((0, 1, 1), -22.0), ((1, 0, 0), -15.0), ((1, 0, 1), -17.0)]
    played = [Mixture(members, mean, 0.6, 32) for members, mean in teams + mixed]
    found = summarise(Task("mpe", "spread_3", {}), ["a", "b"], played)
    assert found.mean.tolist() == [[-10, -21], [-16, -14]]
    assert found.error[0, 0] == pytest.approx(0.6)
    assert found.error[0, 1] == pytest.approx(math.sqrt(2 * 0.36) / 2)
    assert found.loss[0, 1] == found.loss[1, 0] == pytest.approx((18.5 - 12) / 12)
    assert not without_clash(found) and "all pairs clash" in verdict(found)
    mild = summarise(found.task, ["a", "b"], [
        Mixture(members, mean / 2 - 4.5, 0.1, 32) for members, mean in teams + mixed
    ])  # fmt: skip
    assert without_clash(mild) == [] and mild.loss[0, 1] > 0.25
    flat = [Mixture(m.members, -12 - 0.1 * len(set(m.members)), 0.1, 32) for m in played]
    same = summarise(found.task, ["a", "b"], flat)
    assert without_clash(same) == [("b", "a")] and "not fit for data" in verdict(same)


def test_members_act_with_the_others_through_the_runner(tmp_path, capsys):
    """XOR pays 1 for (A, B) and (B, A), 0 for (A, A), -2 for (B, B)."""
    folders = [save_team(tmp_path / name, actions) for name, actions in
               {"ab": (0, 1), "ba": (1, 0)}.items()]  # fmt: skip
    out = tmp_path / "out"
    argv = [*map(str, folders), "--episodes", "64", "--out", str(out)]
    assert program.main(argv) == 0
    record = json.loads((out / "matrix_xor.json").read_text())
    assert record["teams"] == ["ab/10", "ba/10"]
    assert record["matrix"] == [[1.0, 0.0], [-2.0, 1.0]]
    assert record["loss"][0] == [None, 2.0]
    assert len(record["mixtures"]) == 4 and record["mixtures"][2]["members"] == [0, 1]
    assert "all pairs clash" in capsys.readouterr().out
    assert {path.suffix for path in out.iterdir()} == {".md", ".csv", ".json", ".png"}
    assert "1.00 ± 0.00" in (out / "matrix_xor.md").read_text()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"map_name": "m_ne", "info": XOR | {"n_actions": 3}}, "of matrix m_ne, but .* matrix xor"),
        ({"info": XOR | {"obs_shape": 3}}, "does not fit"),
    ],
)
def test_policies_of_different_tasks_are_one_error(tmp_path, capsys, other, message):
    folders = [save_team(tmp_path / "one", (0, 1)), save_team(tmp_path / "two", (0, 1), **other)]
    assert program.main([*map(str, folders), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)


def test_other_settings_of_one_map_are_an_error(monkeypatch, tmp_path):
    tasks = {"one": {"local_ratio": 0.5}, "two": {"local_ratio": 0.1}}
    monkeypatch.setattr(crossplay, "_stored_task", lambda f: Task("mpe", "spread_3", tasks[f]))
    with pytest.raises(
        CheckpointError, match=r"two was trained .* than one: env_args.local_ratio 0.5"
    ):
        crossplay.task_of(["one", "two"], None, None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scripts", "2"], "expected --env and --map"),
        (["--scripts", "2", "--env", "smax", "--map", "3m"], "no scripted teams of 'smax'"),
        (["--scripts", "7", "--env", "mpe", "--map", "spread_3"], "there are 6 scripted teams"),
        (["--scripts", "1", "--env", "mpe", "--map", "spread_3"], "two teams or more"),
    ],
)
def test_what_cannot_be_asked_is_one_error(argv, message, capsys):
    assert program.main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_script_acts_for_the_episodes_that_still_play(monkeypatch):
    monkeypatch.setattr(spread_data, "NOISE", 0.0)
    info = {"state_shape": 18, "obs_shape": 1, "n_actions": 5, "n_agents": 3, "episode_limit": 1}
    batch = EpisodeBatch.empty(build_scheme(info), 3, 4, 2)
    batch["state"].copy_(th.randn(batch["state"].shape))
    script = Script("mpe", "spread_3", 1)
    script.init_hidden(4)
    playing = th.tensor([0, 3])
    found = script.select_actions(batch, 1, 0, bs=playing, test_mode=True)
    members = np.ones((2, 3), dtype=int)
    state = batch["state"][playing, 1].numpy()
    wanted = spread_data.act("spread_3", members, state, np.random.default_rng(5))  # no noise
    assert found.tolist() == wanted.tolist()


def test_an_unknown_environment_is_an_error_of_its_own():
    with pytest.raises(ConfigError, match="overcooked"):
        crossplay.task_of([], "overcook", "coord_ring")
