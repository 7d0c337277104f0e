"""Packed episodes: the same cells as loops find."""

import pytest
import torch as th
from cases import LENGTHS, random_batch, transitions_of

from inspo.components.packed import PackedEpisodes


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
    assert begins == transitions_of(batch)
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
