"""Transitions against the episodes that they were packed from, read cell by cell."""

import pytest
import torch as th
from cases import inputs_loop, make_args, make_mac, random_batch, td_lambda_loop, transitions_of

from inspo.components.transitions import Transitions


@pytest.fixture
def made():
    args = make_args("qmix", "matrix")
    batch = random_batch([4, 1, 6], args, pad=2)
    return Transitions(batch, make_mac(args)), batch, args


def filled_cells(batch):
    """(episode, step) of every filled step, over time first."""
    steps = range(batch.max_seq_length)
    return [(e, t) for t in steps for e in range(batch.batch_size) if batch["filled"][e, t, 0]]


def test_rows_hold_what_the_episodes_hold(made):
    data, batch, args = made
    cells = filled_cells(batch)
    assert len(cells) == len(data.state) == 4 + 1 + 6 + 3
    for row, (e, t) in enumerate(cells):
        assert th.equal(data.state[row], batch["state"][e, t])
        assert th.equal(data.obs[row], batch["obs"][e, t])
        assert th.equal(data.avail[row], batch["avail_actions"][e, t])
        for i in range(args.n_agents):
            assert th.equal(data.inputs[row, i], inputs_loop(batch, args, e, t, i))


def test_transitions_begin_and_lead_where_the_episodes_do(made):
    data, batch, _ = made
    cells = filled_cells(batch)
    begins = [cells[row] for row in data.now]
    assert begins == transitions_of(batch) and len(data) == len(begins) == 11
    assert [cells[row] for row in data.then] == [(e, t + 1) for e, t in begins]
    values = th.randn(len(cells), 3, 4)
    for k, (e, t) in enumerate(begins):
        assert th.equal(data.actions[k], batch["actions"][e, t, :, 0])
        assert data.reward[k] == batch["reward"][e, t, 0]
        assert data.terminated[k] == batch["terminated"][e, t, 0]
        for i in range(3):
            taken = values[data.now[k], i, batch["actions"][e, t, i, 0]]
            assert data.taken(values)[k, i] == taken


def test_returns_are_those_of_the_recursion(made):
    data, batch, _ = made
    values = th.randn(len(data))
    cells = filled_cells(batch)
    begins = [cells[row] for row in data.now]
    expected = td_lambda_loop(batch, dict(zip(begins, values.double())), 0.9, 0.7)
    found = data.td_lambda(values, 0.9, 0.7)
    assert found.tolist() == pytest.approx([float(expected[cell]) for cell in begins], rel=1e-5)
    paid = data.td_lambda(values, 0.9, 0.7, data.reward + 1)
    assert (paid > found + 0.99).all()  # every reward of the return is the one given
