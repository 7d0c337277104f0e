"""Equal episodes: found by content, told from small games, and never on both sides of a split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_behaviour import make_settings, xor_b_data
from test_dataset import LIMIT, make_dataset
from test_dataset_tool import run

from inspo import run as run_module
from inspo.offline import behaviour, game_data, load_dataset, write_dataset
from inspo.offline.buffer import OfflineBuffer
from inspo.offline.duplicates import members
from inspo.offline.operations import Choice, choose
from inspo.utils.phases import Phase

COPIES = np.random.default_rng(0).permutation(np.repeat(np.arange(220), 2))
"""An episode of `repeated` and which of the 220 different ones it is."""


@pytest.fixture(scope="module")
def repeated():
    lengths = np.random.default_rng(1).integers(1, LIMIT + 1, 220)
    return make_dataset(lengths).select(COPIES)


def first_by_loop(data) -> list[int]:
    """By comparing every two episodes, padded."""
    batch = data.episodes(np.arange(len(data)))
    flat = np.concatenate([v.reshape(len(data), -1).astype(float) for v in batch.values()], axis=1)
    return [int(np.flatnonzero((flat == row).all(axis=1))[0]) for row in flat]


def test_equal_episodes_are_found(repeated):
    assert repeated.equal.first.tolist() == first_by_loop(repeated)
    assert (COPIES[repeated.equal.first] == COPIES).all()
    facts = repeated.equal.as_dict()
    assert (facts["distinct"], facts["largest"], facts["copies"]) == (220, 2, 220)
    assert facts["commonest"] == sorted(np.unique(COPIES, return_index=True)[1])[:5]


@pytest.mark.parametrize("key", ["state", "obs", "actions", "avail_actions", "reward"])
@pytest.mark.parametrize("at_end", [False, True])
def test_what_somebody_reads_makes_a_difference(key, at_end):
    """The last row starts no transition: nobody reads its action and its reward."""
    data = make_dataset([3]).select([0, 0])
    assert data.equal.first.tolist() == [0, 0]
    data.arrays[key][7 if at_end else 6] += 1
    same = at_end and key in ("actions", "reward")
    assert replace(data).equal.first.tolist() == [0, 0 if same else 1]


def test_outcomes_of_small_games_are_no_copies(repeated):
    one_step, _ = xor_b_data(copies=100)
    assert one_step.equal.as_dict()["distinct"] == 3 and one_step.equal.n_copies == 0
    assert "none counts as a copy" in str(one_step.equal)
    common = repeated.select(np.append(np.arange(len(repeated)), [0] * 5))
    assert common.equal.as_dict()["largest"] == 7 and common.equal.n_copies == 225
    common.arrays["state"][common.offsets[:-1]] = 1  # it begins always alike
    assert replace(common).equal.n_copies == 0
    assert "50.0% of the episodes are copies" in str(repeated.equal)
    assert str(make_dataset([3, 2]).equal) == "no two episodes are equal"


@pytest.mark.parametrize("map_name", ["bridge", "bridge_3"])
@pytest.mark.parametrize("quality", ["optimal", "mixed"])
def test_bridge_repeats_its_episodes_by_chance(map_name, quality):
    equal = game_data.make_dataset("bridge", map_name, quality).equal
    assert equal.as_dict()["largest"] > 1 and equal.n_copies == 0


def test_members_come_in_the_order_of_what_was_chosen():
    assert members(np.array([0, 1, 0, 3, 1]), np.array([1, 0])).tolist() == [1, 4, 0, 2]


def parts(data):
    info = data.metadata.env_info()
    args = make_settings(info, {"held_out": 0.1})
    return behaviour._Fit(OfflineBuffer(data, 0), args, print, lambda: None, Phase)


def test_no_copy_of_what_is_held_out_is_trained_on(repeated):
    fit = parts(repeated)
    assert not set(COPIES[fit.held_out]) & set(COPIES[fit.training])
    assert len(fit.held_out) == 44 and len(np.union1d(fit.held_out, fit.training)) == 440


@pytest.mark.parametrize("data", [make_dataset([LIMIT] * 30), xor_b_data(10)[0]])
def test_without_copies_the_held_out_part_is_drawn_as_before(data):
    """So that results and cached fits stay."""
    fit = parts(data)
    seed = behaviour.spawn_seeds(3, "held_out", 1)[0]
    order = np.random.default_rng(seed).permutation(30)
    np.testing.assert_array_equal(np.concatenate([fit.held_out, fit.training]), order)


def test_a_subsample_takes_copies_along(repeated):
    chosen = choose(repeated, Choice(episodes=101))
    assert len(set(chosen)) == 101 and len(set(COPIES[chosen])) == 51
    plain = make_dataset([LIMIT] * 30)
    rng = np.random.default_rng(behaviour.spawn_seeds(0, "subsample", 1)[0])
    drawn = np.sort(rng.choice(30, 7, replace=False))
    np.testing.assert_array_equal(choose(plain, Choice(episodes=7)), drawn)


def test_the_commands(capsys, tmp_path, repeated):
    file, target = tmp_path / "x.h5", tmp_path / "y.h5"
    write_dataset(file, repeated)
    assert run("validate", file) == 0
    assert "220 of 440 episodes are distinct" in capsys.readouterr().out
    assert run("inspect", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["equal_episodes"] == repeated.equal.as_dict()
    assert run("dedupe", file, target) == 0
    kept = load_dataset(target)
    firsts = np.unique(repeated.equal.first)
    expected = repeated.select(firsts)
    assert kept.metadata.content_hash == expected.metadata.content_hash
    np.testing.assert_array_equal(kept.battle_won, expected.battle_won)
    assert "220 copies of other episodes left out of x.h5" in kept.metadata.source
    assert run("split", file, tmp_path / "a.h5", tmp_path / "b.h5", "--held-out", 0.25) == 0
    a, b = (load_dataset(tmp_path / name) for name in ("a.h5", "b.h5"))
    assert (len(a), len(b)) == (330, 110)
    state = [{part.arrays["state"][row].tobytes() for row in part.offsets[:-1]} for part in (a, b)]
    assert not state[0] & state[1]


def test_a_run_says_it_at_its_start(monkeypatch, repeated):
    said = []
    logger = SimpleNamespace(phase=print, info=print, warning=said.append)
    stop = SimpleNamespace(check=print)
    monkeypatch.setattr(run_module, "ensure_dataset", lambda *_: Path("x.h5"))
    for data in (repeated, make_dataset([3, 2])):
        monkeypatch.setattr(run_module, "load_dataset", lambda *_, data=data, **__: data)
        run_module.open_dataset(make_settings(data.metadata.env_info(), {}), logger, stop)
    assert len(said) == 1 and "x.h5: 220 of 440 episodes are distinct" in said[0]
