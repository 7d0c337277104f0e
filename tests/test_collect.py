"""Collection: policies rolled out into files, by command and by recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from cases import make_mac

from inspo import main as program
from inspo.offline import collect as collect_module
from inspo.offline import load_dataset
from inspo.offline.collect import Part, acting_settings, collect, ensure_dataset, recipe
from inspo.utils.config import load_config
from inspo.utils.errors import CheckpointError, ConfigError, DatasetError
from inspo.utils.phases import Phase
from inspo.utils.settings import Settings

XOR = np.array([[0, 1], [1, -2]])
WORDS = ["seed=5", "use_cuda=False", "use_progress_bar=False", "hidden_dim=8", "batch_size_run=8"]
SIZES = {"n_agents": 2, "n_actions": 2, "state_shape": 1, "obs_shape": 1, "episode_limit": 1}


def silent(total):
    return Phase("collecting", total)


def matrix_args(tmp_path, **changes) -> Settings:
    command = ["--config=bc", "--env-config=matrix_offline", "with", "use_presets=False"]
    keys = {"agent": "mlp_ns", "obs_last_action": False, "obs_agent_id": False, "seed": 3}
    keys |= {"hidden_dim": 8, "batch_size_run": 8, "datasets_dir": str(tmp_path)} | changes
    return Settings({**load_config(command).values, **keys}).with_facts(device="cpu", **SIZES)


def changed(args, **changes) -> Settings:
    return Settings({**args.as_dict(), **changes}).with_facts(device="cpu", **SIZES)


def policy(args, *probabilities):
    """Weights with which agent i plays `probabilities[i]`, whatever it sees."""
    mac = make_mac(args)
    with th.no_grad():
        for agent, p in zip(mac.agent.agents, probabilities):
            agent.net[-1].weight.zero_()
            agent.net[-1].bias.copy_(th.tensor(p).clamp(min=1e-12).log())
    return mac.agent.state_dict()


def part(args, episodes, *probabilities, epsilon=0.0, greedy=True, source="p"):
    return Part(
        acting_settings(args), policy(args, *probabilities), episodes, epsilon, greedy, source
    )


def joint_counts(dataset):
    actions = dataset.arrays["actions"][dataset.is_transition(), :, 0]
    counts = np.zeros((2, 2), dtype=int)
    np.add.at(counts, tuple(actions.T), 1)
    return counts


@pytest.fixture(autouse=True)
def small_scheme(monkeypatch):
    """`make_mac` of the shared cases builds for its own sizes; here for a 2 x 2 game."""
    monkeypatch.setattr("cases.SHAPES", SIZES)


def test_parts_follow_each_other_with_exact_counts(tmp_path):
    """Each with its own settings: policies of other widths in one collection."""
    args, path, told = matrix_args(tmp_path), tmp_path / "d.h5", []
    parts = [
        part(args, 13, [0.1, 0.9], [0.9, 0.1], source="first"),
        part(changed(args, hidden_dim=16), 21, [0.9, 0.1], [0.9, 0.1], source="second"),
    ]
    facts = collect(parts, args, path, 0, lambda total: Phase("p", total, tell=told.append))
    assert told[-1]["share"] == 1
    dataset = load_dataset(path)
    assert (len(dataset), facts.n_episodes, facts.source) == (34, 34, "first; second")
    actions = dataset.arrays["actions"][dataset.is_transition(), :, 0]
    assert actions.tolist() == [[1, 0]] * 13 + [[0, 0]] * 21  # greedy
    reward = dataset.arrays["reward"][dataset.is_transition(), 0]
    assert reward.tolist() == XOR[tuple(actions.T)].tolist()
    assert facts.return_mean == pytest.approx(13 / 34)
    assert dataset.arrays["terminated"][dataset.is_transition()].all()


def test_sampling_and_exploration_have_their_shares(tmp_path):
    args = matrix_args(tmp_path, batch_size_run=500)
    sampled = part(args, 4000, [0.3, 0.7], [0.8, 0.2], greedy=False)
    collect([sampled], args, tmp_path / "a.h5", 0, silent)
    shares = joint_counts(load_dataset(tmp_path / "a.h5")) / 4000
    assert np.abs(shares - np.outer([0.3, 0.7], [0.8, 0.2])).max() < 0.03
    explored = part(args, 4000, [0.3, 0.7], [0.8, 0.2], epsilon=0.4)
    collect([explored], args, tmp_path / "b.h5", 0, silent)
    shares = joint_counts(load_dataset(tmp_path / "b.h5")) / 4000
    assert np.abs(shares - np.outer([0.2, 0.8], [0.8, 0.2])).max() < 0.03


def test_a_seed_gives_one_file_and_the_callers_stream_is_untouched(tmp_path):
    args = matrix_args(tmp_path)
    hashes = []
    for folder, seed, earlier in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        (tmp_path / folder).mkdir()
        sampled = part(args, 50, [0.5, 0.5], [0.5, 0.5], greedy=False)
        th.manual_seed(earlier)
        before = th.get_rng_state()
        facts = collect([sampled], args, tmp_path / folder / "d.h5", seed, silent)
        assert th.equal(th.get_rng_state(), before)
        hashes.append(facts.content_hash)
    assert hashes[0] == hashes[1] != hashes[2]
    assert (args.seed, args.n_agents) == (3, 2)  # the caller's settings are its own


def test_nothing_is_left_when_it_fails_and_nothing_is_overwritten(tmp_path, monkeypatch):
    args = matrix_args(tmp_path)
    good = part(args, 20, [0.5, 0.5], [0.5, 0.5])
    bad = Part(good.settings, {"nonsense": th.zeros(1)}, 5, 0.0, True, "bad")
    with pytest.raises(CheckpointError, match="do not fit"):
        collect([good, bad], args, tmp_path / "d.h5", 0, silent)
    assert not list(tmp_path.iterdir())
    collect([good], args, tmp_path / "d.h5", 0, silent)
    content = (tmp_path / "d.h5").read_bytes()
    with pytest.raises(DatasetError, match=r"d\.h5"):
        collect([good], args, tmp_path / "d.h5", 1, silent)
    assert (tmp_path / "d.h5").read_bytes() == content


# Recipes


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Two policies of a matrix game 'duel', and what is made of them."""
    args = matrix_args(tmp_path)
    folder = tmp_path / "policies/matrix/duel"
    for name, probabilities in (("weak", [0.9, 0.1]), ("strong", [0.1, 0.9])):
        (folder / name).mkdir(parents=True)
        th.save(policy(args, probabilities, [0.9, 0.1]), folder / name / "agent.th")
        facts = {"settings": acting_settings(args), "algorithm": "bc", "seed": 1, "t_env": 10}
        facts["test_return_mean"] = 0.5
        (folder / name / "policy.json").write_text(json.dumps(facts))
    recipes = {
        "medium": [{"policy": "weak", "episodes": 40}],
        "expert": [{"policy": "strong", "episodes": 40}],
        "medium_replay": [
            {"policy": "weak", "episodes": 10, "epsilon": 1.0},
            {"policy": "strong", "episodes": 10},
        ],
    }
    (folder / "recipes.yaml").write_text(yaml.safe_dump(recipes))
    monkeypatch.setattr(collect_module, "POLICIES", tmp_path / "policies")
    return changed(
        args,
        map_name="duel",
        env_args={"map_name": "duel", "payoff": XOR.tolist()},
        datasets_dir=str(tmp_path / "datasets"),
    )


def test_recipes_and_mixtures(shipped):
    assert recipe("matrix", "duel", "medium") == [{"policy": "weak", "episodes": 40}]
    assert recipe("matrix", "duel", "mixed_90_10") == [
        {"policy": "weak", "episodes": 36},
        {"policy": "strong", "episodes": 4},
    ]
    assert recipe("matrix", "duel", "mixed_100_0") == [{"policy": "weak", "episodes": 40}]
    assert recipe("matrix", "duel", "mixed_90_20") is None
    assert recipe("matrix", "duel", "perfect") is None
    assert recipe("matrix", "nowhere", "medium") is None
    path = collect_module.POLICIES / "matrix/duel/recipes.yaml"
    path.write_text(yaml.safe_dump({"medium": [{"policy": "weak", "episodes": 40}]}))
    assert recipe("matrix", "duel", "mixed_90_10") is None  # there is no expert to mix


def test_a_missing_dataset_is_made_once(shipped):
    said = []
    shipped = changed(shipped, quality="mixed_75_25")
    path = ensure_dataset(shipped, said.append, silent)
    assert path == Path(shipped.datasets_dir) / "matrix/duel_mixed_75_25.h5"
    assert joint_counts(load_dataset(path)).tolist() == [[30, 0], [10, 0]]
    assert len(said) == 1
    before = path.stat().st_mtime_ns
    assert ensure_dataset(shipped, said.append, silent) == path
    assert (len(said), path.stat().st_mtime_ns) == (1, before)
    facts = load_dataset(path).metadata
    assert "weak (bc, seed 1" in facts.source
    assert (facts.map_name, facts.quality) == ("duel", "mixed_75_25")


def test_a_recipe_says_whether_its_policy_is_sampled(shipped):
    folder = collect_module.POLICIES / "matrix/duel"
    entry = {"policy": "weak", "episodes": 400, "greedy": False}
    (folder / "recipes.yaml").write_text(yaml.safe_dump({"medium_replay": [entry]}))
    shipped = changed(shipped, quality="medium_replay")
    data = load_dataset(ensure_dataset(shipped, lambda _: None, silent))
    counts = joint_counts(data) / 400  # agent 1 plays (.9, .1), and so does agent 2
    assert abs(counts[0, 0] - 0.81) < 0.08 and counts[0, 1] > 0.03 and counts[1, 0] > 0.03
    assert "sampled, epsilon 0.0, 400 episodes" in data.metadata.source


def test_what_cannot_be_made_is_one_clear_error(shipped):
    for key in ("env", "map_name", "quality"):
        for name in ("../../evil", "/evil", "a/b", "..", ".hidden", "a\\b", "a\nb"):
            with pytest.raises(ConfigError, match=f"{key}: expected a plain name"):
                ensure_dataset(changed(shipped, **{key: name}), print, silent)
    with pytest.raises(DatasetError, match=r"(?s)'perfect'.*medium_replay.*collect\.n_episodes"):
        ensure_dataset(changed(shipped, quality="perfect"), print, silent)
    named = changed(shipped, dataset={"path": "/nowhere/x.h5"})  # the reader's error to report
    assert ensure_dataset(named, print, silent) == Path("/nowhere/x.h5")
    folder, medium = collect_module.POLICIES / "matrix/duel", changed(shipped, quality="medium")
    for name in ("policy.json", "agent.th"):
        whole = (folder / "weak" / name).read_bytes()
        (folder / "weak" / name).write_bytes(whole[:20])
        with pytest.raises(CheckpointError, match="weak"):
            ensure_dataset(medium, print, silent)
        (folder / "weak" / name).write_bytes(whole)
    entry = {"policy": "weak", "episodes": 4, "greddy": False}
    (folder / "recipes.yaml").write_text(yaml.safe_dump({"medium": [entry]}))
    with pytest.raises(DatasetError, match=r"recipes\.yaml: unknown key 'greddy'.*greedy"):
        ensure_dataset(medium, print, silent)
    assert not list(Path(shipped.datasets_dir).glob("*/*.h5"))


# By command


def test_collect_by_command(tmp_path, capsys):
    results = f"local_results_path={tmp_path / 'results'}"
    common = [*WORDS, results, f"datasets_dir={tmp_path}"]
    argv = ["--config=qmix", "--env-config=matrix", "with", *common]
    assert program.main([*argv, "t_max=40", "batch_size=8", "test_nepisode=0"]) == 0
    (model,) = (tmp_path / "results/models").iterdir()
    path = tmp_path / "mine.h5"
    words = [f"checkpoint_path={model}", "collect.n_episodes=21", f"collect.path={path}"]
    assert program.main([*argv, *words, "test_epsilon=0.5"]) == 0
    facts = load_dataset(path).metadata
    assert (facts.n_episodes, facts.env, facts.map_name) == (21, "matrix", "xor")
    for word in ("qmix", model.name, "sampled", "epsilon 0.5"):
        assert word in facts.source
    assert program.main([*argv, *words]) == 2  # the file is there
    assert "mine.h5" in capsys.readouterr().err

    offline = ["--config=bc", "--env-config=matrix_offline", "with", *common]
    words = [f"dataset.path={path}", "batch_size=8", "t_max=40", "test_nepisode=0", "quality=null"]
    assert program.main([*offline, *words]) == 0

    # Of another game, under the name that the default has.
    other = [*argv, f"checkpoint_path={model}", "quality=mine", "collect.n_episodes=5"]
    assert program.main([*other, "env_args.payoff=[[1.0, 0.0], [0.0, 1.0]]"]) == 0
    words = ["batch_size=4", "t_max=8", "test_nepisode=0", "quality=mine"]
    assert program.main([*offline, *words]) == 2
    said = capsys.readouterr().err
    for word in ("xor_mine.h5", "env_args.payoff was [[1.0", "datasets_dir", "dataset.path"):
        assert word in said
    named = f"dataset.path={tmp_path / 'matrix/xor_mine.h5'}"
    assert program.main([*offline, *words, named]) == 0
    assert "env_args.payoff was" in capsys.readouterr().err

    argv[0] = "--config=mappo"
    words = [f"checkpoint_path={model}", "collect.n_episodes=5"]
    assert program.main([*argv, *words]) == 2
    assert "where to?" in capsys.readouterr().err  # neither collect.path nor quality
    assert program.main([*argv, *words, f"collect.path={tmp_path}/other.h5"]) == 2
    assert "another alg" in capsys.readouterr().err
