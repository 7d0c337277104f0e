"""Packed episodes: the same cells as loops find, and padding that changes nothing."""

import copy

import pytest
import torch as th
from cases import descend_plainly, make_args, make_learner, padded, random_batch, transitions_of

from inspo.components.packed import PackedEpisodes
from inspo.utils.config import names

LENGTHS = [4, 1, 6, 3]


@pytest.mark.parametrize("pad", [0, 3])
def test_rows_are_the_filled_cells(pad):
    batch = random_batch(LENGTHS, pad=pad)
    packed = PackedEpisodes(batch["filled"])
    cells = [divmod(c, batch.max_seq_length) for c in packed.index.tolist()]
    # time first, episodes second
    expected = [(e, t) for t in range(7) for e in range(4) if t <= LENGTHS[e]]
    assert cells == expected
    assert packed.time.tolist() == [t for _, t in expected]
    rows = packed.pack(batch["obs"])
    assert all(th.equal(row, batch["obs"][e, t]) for row, (e, t) in zip(rows, expected))
    assert th.equal(PackedEpisodes(batch["filled"].squeeze(-1)).index, packed.index)

    begins = [cells[r] for r in packed.transitions.tolist()]
    assert sorted(begins) == sorted(transitions_of(batch))
    assert [cells[r] for r in packed.successors.tolist()] == [(e, t + 1) for e, t in begins]


@pytest.mark.parametrize("pad", [0, 3])
def test_round_trips(pad):
    batch = random_batch(LENGTHS, pad=pad)
    packed = PackedEpisodes(batch["filled"])
    filled = batch["filled"][..., None]
    rows = packed.pack(batch["obs"])
    assert th.equal(packed.unpack(rows), batch["obs"] * filled)
    assert th.equal(packed.pack(packed.unpack(rows)), rows)
    time_major = packed.to_time_major(rows)
    assert th.equal(time_major, (batch["obs"] * filled).transpose(0, 1))
    assert th.equal(packed.from_time_major(time_major), rows)

    now = packed.transitions
    some = packed.unpack(rows[now], now)
    for e in range(batch.batch_size):
        for t in range(batch.max_seq_length):
            wanted = batch["obs"][e, t] if (e, t) in transitions_of(batch) else th.zeros(3, 4)
            assert th.equal(some[e, t], wanted)


def test_packing_passes_gradients():
    batch = random_batch(LENGTHS)
    packed = PackedEpisodes(batch["filled"])
    x = batch["obs"].clone().requires_grad_()
    packed.to_time_major(packed.pack(x)).sum().backward()
    assert th.equal(x.grad, batch["filled"][..., None].expand_as(x).float())


@pytest.mark.parametrize("alg", names("algs"))
def test_padding_changes_nothing(alg):
    """Thirty more steps of rubbish: the same statistics and the same weights afterwards."""
    args = make_args(alg, resample="weight", td_lambda=0.8, critic_warmup=0.0)
    if alg == "inspo":
        args.agent_order = "fixed"
    batch = random_batch(LENGTHS, args)
    th.manual_seed(0)
    learner, _ = make_learner(args)
    descend_plainly(learner)
    results = []
    for pad in (0, 30):
        twin = copy.deepcopy(learner)
        th.manual_seed(1)
        twin.train(padded(batch, pad), 50, 8)
        weights = {k: v for net in twin.networks.values() for k, v in net.state_dict().items()}
        results.append((twin.logger.stats, weights))
    (stats, weights), (other_stats, other_weights) = results
    assert stats.keys() == other_stats.keys()
    for key, value in stats.items():
        assert value == pytest.approx(other_stats[key], abs=1e-6, rel=1e-5), key
    for key, value in weights.items():
        assert th.allclose(value, other_weights[key], atol=1e-6), key
