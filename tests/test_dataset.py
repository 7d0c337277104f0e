"""The dataset in memory, its statistics and its validator."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from inspo.offline import (
    DatasetMetadata,
    OfflineDataset,
    check_matches,
    compute_statistics,
    require_valid,
    validate,
)
from inspo.offline.offline_dataset import FIELDS, FILLED, ContentHash, content_hash
from inspo.offline.padded import PaddedSource, check_filled, check_layout, flatten
from inspo.offline.validation import ROW_RULES, Violation, differing_settings
from inspo.utils.errors import DatasetError

N, A, S, OBS, LIMIT = 3, 5, 4, 6, 7


def metadata(**changes) -> DatasetMetadata:
    names = {"env": "smax", "map_name": "2s3z", "quality": "medium", "simulator": "jaxmarl 0.2.0"}
    sizes = {"n_agents": N, "n_actions": A, "state_shape": S, "obs_shape": OBS}
    given = names | sizes | {"source": "a test", "episode_limit": LIMIT}
    return DatasetMetadata(**given | {"env_args": '{"max_steps": 7}'} | changes)


def make_dataset(lengths=(3, LIMIT, 1, 5), seed=0, **changes) -> OfflineDataset:
    """Random, valid episodes, of the sizes in `changes`; those that reach the limit are cut."""
    rng, meta = np.random.default_rng(seed), metadata(**changes)
    lengths = np.array(lengths, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
    rows, n, a = offsets[-1], meta.n_agents, meta.n_actions
    avail = (rng.random((rows, n, a)) < 0.5).astype(np.int32)
    actions = rng.integers(0, a, (rows, n, 1))
    np.put_along_axis(avail, actions, 1, axis=-1)
    terminated = np.zeros((rows, 1), dtype=np.uint8)
    terminated[offsets[1:] - 2, 0] = lengths < meta.episode_limit
    actions[offsets[1:] - 1] = 0
    arrays = {
        "state": rng.normal(size=(rows, meta.state_shape)).astype(np.float32),
        "obs": rng.normal(size=(rows, n, meta.obs_shape)).astype(np.float32),
        "actions": actions,
        "avail_actions": avail,
        "reward": rng.normal(size=(rows, 1)).astype(np.float32),
        "terminated": terminated,
    }
    won = (rng.random(len(lengths)) < 0.5).astype(np.uint8)
    return OfflineDataset.build(arrays, lengths, meta, won)


def padded(dataset: OfflineDataset) -> dict[str, np.ndarray]:
    return dataset.episodes(np.arange(len(dataset)), n_steps=LIMIT + 1)


def validate_padded(batch, limit=None) -> list[Violation]:
    """The rules of padded arrays in the order in which a reader applies them."""
    source = PaddedSource(batch)
    if broken := check_layout(source, limit):
        return broken
    lengths, broken = check_filled(source)
    if broken:
        return broken
    return validate(OfflineDataset.build(flatten(source, lengths), lengths, metadata()))


def same(first: OfflineDataset, second: OfflineDataset) -> bool:
    return (
        all(np.array_equal(first.arrays[key], second.arrays[key]) for key in FIELDS)
        and all(first.arrays[key].dtype == second.arrays[key].dtype for key in FIELDS)
        and np.array_equal(first.lengths, second.lengths)
    )


# ------------------------------------------------------------------------------ in memory


def test_statistics_against_a_loop():
    data = make_dataset()
    stats, meta = compute_statistics(data), data.metadata
    returns = [
        sum(float(data.arrays["reward"][data.offsets[e] + t, 0]) for t in range(length))
        for e, length in enumerate(data.lengths)
    ]
    np.testing.assert_allclose(data.episode_returns(), returns, rtol=1e-12)
    for found in (meta, stats):
        assert (found.n_episodes, found.n_steps, found.n_cut) == (4, 16, 0)
    assert stats.n_terminated == 3
    assert (stats.lengths.min, stats.lengths.median, stats.lengths.max) == (1, 4, LIMIT)
    assert meta.return_mean == stats.returns.mean == pytest.approx(np.mean(returns))
    assert meta.return_std == pytest.approx(np.std(returns))
    assert meta.win_rate == pytest.approx(data.battle_won.mean())
    assert stats.as_dict()["returns"]["median"] == stats.returns.median
    counts = np.zeros((N, A))
    for row in np.flatnonzero(data.is_transition()):
        for agent in range(N):
            counts[agent, data.arrays["actions"][row, agent, 0]] += 1
    np.testing.assert_allclose(stats.action_frequencies, counts / 16)
    sizes = {"state_shape": S, "obs_shape": OBS, "n_actions": A, "n_agents": N}
    assert meta.env_info() == sizes | {"episode_limit": LIMIT}
    data.arrays["reward"][data.offsets[1:] - 1] = 100.0  # of the last rows, which start nothing
    np.testing.assert_allclose(data.episode_returns(), returns, rtol=1e-12)


def test_episodes_are_padded_with_zeros():
    data = make_dataset()
    batch = data.episodes([2, 0])
    assert batch["obs"].shape == (2, 4, N, OBS)
    np.testing.assert_array_equal(batch[FILLED][..., 0], [[1, 1, 0, 0], [1, 1, 1, 1]])
    assert batch[FILLED].dtype == np.int64
    first = data.offsets[2]
    np.testing.assert_array_equal(batch["obs"][0, :2], data.arrays["obs"][first : first + 2])
    assert not batch["obs"][0, 2:].any()
    np.testing.assert_array_equal(batch["state"][1], data.arrays["state"][:4])
    with pytest.raises(ValueError, match="n_steps"):
        data.episodes([0], n_steps=3)


def test_select_copies_episodes_in_the_given_order():
    data = make_dataset()
    picked = data.select([3, 3, 0], quality="odd", source="by hand")
    np.testing.assert_array_equal(picked.lengths, [5, 5, 3])
    np.testing.assert_array_equal(picked.arrays["obs"][:6], data.arrays["obs"][data.offsets[3] :])
    assert (picked.metadata.quality, picked.metadata.source) == ("odd", "by hand")
    assert picked.metadata.n_steps == 13
    assert not validate(picked)
    everything = data.select(range(4))
    assert same(everything, data)
    assert everything.metadata.content_hash == data.metadata.content_hash


def test_hash_depends_on_content_alone():
    data = make_dataset()
    digest = data.metadata.content_hash
    assert len(digest) == 64
    assert make_dataset(quality="expert", source="elsewhere").metadata.content_hash == digest

    pieces = ContentHash()
    for episode in range(len(data)):
        piece = data.select([episode])
        pieces.update(piece.arrays, piece.lengths)
    assert pieces.hexdigest() == digest

    seen = {digest}
    for key in FIELDS:
        changed = {name: array.copy() for name, array in data.arrays.items()}
        changed[key].reshape(-1)[0] += 1
        seen.add(content_hash(changed, data.lengths))
    seen.add(content_hash(data.arrays, data.lengths[::-1]))
    assert len(seen) == len(FIELDS) + 2


def test_hash_stays_the_same_from_version_to_version():
    """Caches and published results are keyed by it: a change needs a new format version."""
    arrays = {
        "state": np.zeros((2, 1), np.float32),
        "obs": np.ones((2, 1, 1), np.float32),
        "actions": np.zeros((2, 1, 1), np.int64),
        "avail_actions": np.ones((2, 1, 2), np.int32),
        "reward": np.zeros((2, 1), np.float32),
        "terminated": np.array([[1], [0]], np.uint8),
    }
    digest = "ec3b3dc4bc36e872520a685075dd4ea893f15ddfe5de8545ceed814bfe058df6"
    assert content_hash(arrays, np.array([1], dtype=np.int64)) == digest


# ------------------------------------------------------------------------------ validation


def test_valid_data_has_no_violation():
    data = make_dataset()
    assert validate(data) == []
    batch = padded(data)
    assert validate_padded(batch, LIMIT) == []
    for key in FIELDS:  # padding is not looked at
        batch[key][batch[FILLED][..., 0] == 0] = 77
    assert validate_padded(batch, LIMIT) == []
    require_valid([], "x.h5")


EPISODE, STEP, AGENT = 3, 2, 1


def _put(key, value, agent=True):
    def change(batch):
        index = (EPISODE, STEP, AGENT) if agent else (EPISODE, STEP)
        batch[key][index] = value

    return change


def _take_unavailable(batch):
    batch["avail_actions"][EPISODE, STEP, AGENT] = [1, 0, 1, 1, 1]
    batch["actions"][EPISODE, STEP, AGENT] = 1


def _mask_of_two(batch):
    action = batch["actions"][EPISODE, STEP, AGENT, 0]
    batch["avail_actions"][EPISODE, STEP, AGENT, action] = 2


VALUES = {
    "finite_state": (_put("state", np.nan, agent=False), None),
    "finite_obs": (_put("obs", np.inf), AGENT),
    "finite_reward": (_put("reward", -np.inf, agent=False), None),
    "action_range": (_put("actions", A), AGENT),
    "action_available": (_take_unavailable, AGENT),
    "mask_values": (_mask_of_two, AGENT),
    "no_action": (_put("avail_actions", 0), AGENT),
    "terminated_values": (_put("terminated", 2, agent=False), None),
    "terminated_place": (_put("terminated", 1, agent=False), None),
}


def test_every_row_rule_has_a_case():
    assert set(VALUES) == {rule.name for rule in ROW_RULES}


@pytest.mark.parametrize("rule", VALUES)
def test_row_rule(rule):
    """Each rule is found in padded and in flat data, counted, and located."""
    change, agent = VALUES[rule]
    data = make_dataset()
    batch = padded(data)
    change(batch)
    found = {violation.rule: violation for violation in validate_padded(batch)}
    assert rule in found
    assert (found[rule].episode, found[rule].step, found[rule].agent) == (EPISODE, STEP, agent)
    assert found[rule].count == 1

    mask = batch[FILLED][..., 0] == 1
    flat = replace(data, arrays={key: batch[key][mask] for key in FIELDS})
    assert found == {violation.rule: violation for violation in validate(flat)}


def test_row_rules_count_over_blocks():
    data = make_dataset(lengths=[5] * 4000)
    rows = data.offsets[:-1] + 1
    data.arrays["actions"][rows, 2] = -1
    (violation,) = validate(data)
    assert (violation.count, violation.episode, violation.step, violation.agent) == (4000, 0, 1, 2)
    assert "4000 in all (first at episode 0, step 1, agent 2)" in str(violation)


def test_negative_action_and_terminal_rows():
    data = make_dataset()
    terminal = data.offsets[1] - 1
    data.arrays["avail_actions"][terminal, :, 0] = 0
    data.arrays["avail_actions"][terminal, :, 1] = 1
    assert validate(data) == [], "the action in the row of a terminal observation is never taken"
    data.arrays["terminated"][terminal] = 1
    data.arrays["actions"][terminal, 0] = -1
    assert {v.rule for v in validate(data)} == {"terminated_place", "action_range"}


def test_no_terminal():
    data = make_dataset()
    data.arrays["terminated"][:] = 0
    (violation,) = validate(data)
    assert (violation.rule, violation.count, violation.episode) == ("no_terminal", 3, 0)
    admitted = OfflineDataset.build(data.arrays, data.lengths, data.metadata)
    assert admitted.metadata.n_cut == 3 and validate(admitted) == []
    fewer = replace(admitted, metadata=replace(admitted.metadata, n_cut=2))
    assert [v.rule for v in validate(fewer)] == ["no_terminal"]


@pytest.mark.parametrize(
    ("rule", "episode", "filled", "step"),
    [
        ("filled_prefix", 1, [1, 1, 0, 1, 1, 0, 0, 0], 3),
        ("filled_values", 1, [1, 1, 3, 0, 0, 0, 0, 0], 2),
        ("empty_episode", 2, [0] * 8, None),
        ("empty_episode", 0, [1] + [0] * 7, None),  # no transition
    ],
)
def test_filled_rule(rule, episode, filled, step):
    batch = padded(make_dataset())
    batch[FILLED][episode, :, 0] = filled
    (violation,) = validate_padded(batch)
    assert (violation.rule, violation.key) == (rule, FILLED)
    assert (violation.episode, violation.step) == (episode, step)


def _replace(key, function):
    def change(batch):
        batch[key] = function(batch[key])

    return change


LAYOUT_CASES = [
    *(("missing_key", key, lambda batch, key=key: batch.pop(key)) for key in (*FIELDS, FILLED)),
    ("wrong_dtype", "obs", _replace("obs", lambda x: x.astype(np.float64))),
    ("wrong_dtype", "actions", _replace("actions", lambda x: x.astype(np.int32))),
    ("wrong_ndim", "actions", _replace("actions", lambda x: x[..., 0])),
    ("wrong_shape", "reward", _replace("reward", lambda x: np.repeat(x, 2, axis=-1))),
    ("wrong_shape", "avail_actions", _replace("avail_actions", lambda x: x[..., :0])),
    ("sizes_disagree", "actions", _replace("actions", lambda x: x[:, :, :2])),
    ("sizes_disagree", "reward", _replace("reward", lambda x: x[:, :-1])),
    ("sizes_disagree", FILLED, _replace(FILLED, lambda x: x[:-1])),
]


@pytest.mark.parametrize(("rule", "key", "change"), LAYOUT_CASES)
def test_layout_rule(rule, key, change):
    batch = padded(make_dataset())
    change(batch)
    (violation,) = validate_padded(batch)
    assert (violation.rule, violation.key) == (rule, key)


def test_layout_of_all_keys():
    batch = padded(make_dataset())
    assert {v.rule for v in validate_padded(batch, LIMIT + 1)} == {"wrong_length"}
    empty = {key: array[:0] for key, array in batch.items()}
    assert {v.rule for v in validate_padded(empty)} == {"zero_episodes"}


def test_flat_layout_rules():
    data = make_dataset()
    arrays = data.arrays
    for change, rules in (
        ({"arrays": {**arrays, "obs": arrays["obs"][:-1]}}, ["wrong_shape"]),
        ({"arrays": {**arrays, "obs": arrays["obs"].astype("f8")}}, ["wrong_dtype"]),
        ({"arrays": {k: v for k, v in arrays.items() if k != "obs"}}, ["missing_key"]),
        ({"metadata": metadata(episode_limit=6)}, ["wrong_length"]),
        ({"metadata": metadata(n_agents=N + 1)}, ["wrong_shape"] * 3),
        ({"lengths": data.lengths[:0]}, ["zero_episodes"]),
    ):
        assert [v.rule for v in validate(replace(data, **change))] == rules


def test_one_message_names_everything():
    batch, file = padded(make_dataset()), "datasets/smax/2s3z_medium.h5"
    _put("obs", np.nan)(batch)
    _put("actions", 9)(batch)
    with pytest.raises(DatasetError) as caught:
        require_valid(validate_padded(batch), file, "Do something.")
    where = "episode 3, step 2, agent 1"
    for part in (file, "'obs'", "'actions'", "expected", "found 9", "nan", where, "Do something."):
        assert part in str(caught.value)


def test_another_maps_data_is_named():
    meta = make_dataset().metadata
    check_matches(meta)
    check_matches(meta, meta.env_info(), "2s3z")
    check_matches(meta, {"n_agents": N, "unit_dim": 4})
    with pytest.raises(DatasetError, match="another map's data") as caught:
        check_matches(meta, {**meta.env_info(), "n_actions": 12, "obs_shape": 55}, "5m_vs_6m")
    message = str(caught.value)
    assert "n_actions is 5 in the data and 12 in the environment" in message
    assert "obs_shape is 6 in the data and 55 in the environment" in message
    assert "'2s3z' and not '5m_vs_6m'" in message and "state_shape" not in message


def test_metadata_names_what_is_computed():
    """`complete_metadata` fills exactly the second half, so a writer cannot be lied to."""
    given = metadata(n_episodes=99, content_hash="x", win_rate=1.0)
    data = make_dataset()
    rebuilt = OfflineDataset.build(data.arrays, data.lengths, given)
    assert rebuilt.metadata == replace(data.metadata, win_rate=None)
    assert {f.name for f in fields(DatasetMetadata)} >= {"n_cut", "notes", "created_by"}


def test_settings_of_the_simulator_are_compared_where_both_are_known():
    given = metadata(env_args='{"max_steps": 7, "reward_scale": 10.0, "replay_dir": "a", "old": 1}')
    now = {"max_steps": 7, "reward_scale": 1.0, "replay_dir": "b", "new": 2}
    assert differing_settings(given, now) == ["env_args.reward_scale was 10.0 and is 1.0"]
    assert differing_settings(metadata(env_args=None), now) == []
    for damaged in ("{", "3", '[["max_steps", 9]]', "[" * 100_000):
        with pytest.raises(DatasetError, match=r"x\.h5: attribute 'env_args'.*JSON"):
            differing_settings(metadata(env_args=damaged), now, "x.h5")
