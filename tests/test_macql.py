"""MACQL: loss by loops over the joint actions drawn, which are all available, and its optimum."""

import itertools
import math

import pytest
import torch as th
from cases import LENGTHS, build, random_batch, without_choice
from test_cfcql import totals_on_game
from test_qmix import Literal

from inspo.learners.macql_learner import draw_available
from inspo.utils.config import load_config


@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
def test_loss_and_step_are_those_of_the_loops(td_lambda):
    learner, logger, args = build(
        "macql", td_lambda=td_lambda, raw_sample_actions=7, global_cql_alpha=3.0
    )
    batch = random_batch(LENGTHS, args, pad=2)
    literal = Literal(learner, batch, args)
    cells = literal.cells  # in the order in which the learner draws for them
    th.manual_seed(4)
    drawn = draw_available(th.stack([batch["avail_actions"][e, t] for e, t in cells]), 7)
    penalty = 0.0
    for (e, t), joints in zip(cells, drawn.transpose(1, 2).tolist(), strict=True):
        for joint in joints:
            assert all(a in literal.possible(e, t, i) for i, a in enumerate(joint))
        total = sum(th.exp(literal.q_tot(e, t, joint)) for joint in joints)
        penalty += th.log(total) - literal.q_tot(e, t, literal.played(e, t))
    td_loss, cql_loss = literal.td_loss(), penalty / len(cells)
    th.manual_seed(4)
    literal.assert_trained_as(logger, td_loss + 3 * cql_loss, td_loss=td_loss, cql_loss=cql_loss)


def test_draws_are_uniform_over_the_available_actions_and_independent():
    th.manual_seed(0)
    masks = [[0, 1, 1, 0, 1], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1]]
    avail = th.tensor(masks, dtype=th.int32).view(2, 2, 5)
    n_samples = 40_000
    drawn = draw_available(avail, n_samples)
    assert drawn.shape == (2, 2, n_samples)
    for row, mask in zip(drawn.flatten(0, 1), masks, strict=True):
        share = th.bincount(row, minlength=5) / n_samples
        expected = th.tensor(mask) / sum(mask)
        assert (share[expected == 0] == 0).all()
        assert th.allclose(share, expected, atol=0.012)  # five standard deviations
    for first, second in itertools.product((0, 4), (0, 4)):
        both = ((drawn[1, 0] == first) & (drawn[1, 1] == second)).float().mean()
        assert both.item() == pytest.approx(1 / 10, abs=0.008)


def test_a_single_joint_action_is_penalised_by_a_constant():
    """All that could be drawn is what was done: log K and no gradient, though nearly no draw from
    all joint actions would be available (the fault of the authors' code)."""
    losses = {}
    for alpha in (0.0, 50.0):
        learner, logger, args = build("macql", global_cql_alpha=alpha, raw_sample_actions=100)
        learner.train(without_choice(random_batch(LENGTHS, args)), 0, 8)
        assert logger.stats["cql_loss"] == [pytest.approx(math.log(100), abs=1e-5)]
        losses[alpha] = logger.stats["grad_norm"]
    assert losses[0.0] == pytest.approx(losses[50.0], rel=1e-3)


def test_the_penalty_estimates_the_soft_maximum_over_available_joint_actions():
    learner, logger, args = build("macql", raw_sample_actions=20_000)
    batch = random_batch(LENGTHS, args)
    literal = Literal(learner, batch, args)
    expected = 0.0
    for e, t in literal.cells:
        joints = list(itertools.product(*[literal.possible(e, t, i) for i in range(3)]))
        mean = sum(math.exp(literal.q_tot(e, t, joint).detach()) for joint in joints) / len(joints)
        expected += math.log(mean) - float(literal.q_tot(e, t, literal.played(e, t)).detach())
    learner.train(batch, 0, 8)
    found = logger.stats["cql_loss"][0] - math.log(20_000)
    assert found == pytest.approx(expected / len(literal.cells), abs=2e-3)


def test_the_penalty_alone_clones_the_joint_action():
    """softmax Q_tot over joint actions becomes the data's distribution, here a product."""
    greedy, totals = totals_on_game(
        "macql", "m_ne", "imbalanced", 200, global_cql_alpha=1e4, raw_sample_actions=500
    )
    beta = th.tensor([0.8, 0.1, 0.1])
    found = totals.flatten().softmax(0).view(3, 3)
    assert th.allclose(found, th.outer(beta, beta), atol=0.04)  # K joint actions, not all
    assert greedy == [0, 0]


@pytest.mark.parametrize(("map_name", "td_lambda"), [("2s3z", 0.6), ("6h_vs_8z", 0.3)])
def test_on_sc2_the_values_are_the_published_ones(map_name, td_lambda):
    words = ["--config=macql", "--env-config=sc2_offline", "with", f"map_name={map_name}"]
    values = load_config(words).values
    assert (values["global_cql_alpha"], values["raw_sample_actions"]) == (5, 100)
    assert (values["td_lambda"], values["target_update_interval"]) == (td_lambda, 25)
