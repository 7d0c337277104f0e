"""CFCQL and MACQL: losses by loops, what lambda does, and what the penalty alone converges to."""

import copy
import itertools
import math

import pytest
import torch as th
from cases import (
    LENGTHS,
    assert_close_weights,
    available,
    build,
    descend,
    descend_plainly,
    play_agent,
    random_batch,
    td_lambda_loop,
    train_on_game,
    transitions_of,
    without_choice,
)
from test_qmix import Literal

from inspo.learners.cfcql_learner import agent_weights
from inspo.learners.macql_learner import draw_available
from inspo.utils.config import load_config


@pytest.mark.parametrize(
    ("inverse_temperature", "td_lambda"), [(0.0, 0.0), (0.7, 0.6), (100.0, 1.0)]
)
def test_loss_and_step_are_those_of_the_loops(inverse_temperature, td_lambda):
    learner, logger, args = build(
        "cfcql", td_lambda=td_lambda, softmax_temp=inverse_temperature, global_cql_alpha=3.0
    )
    batch = random_batch(LENGTHS, args, pad=2)
    literal = Literal(learner, batch, args)
    penalty, weights, of_all = 0.0, [], []
    for e, t in literal.cells:
        played = literal.played(e, t)
        soft_maxima, divergences = [], []
        for i in range(3):
            otherwise = {
                b: literal.q_tot(e, t, [*played[:i], b, *played[i + 1 :]])
                for b in literal.possible(e, t, i)
            }
            total = sum(th.exp(q) for q in otherwise.values())
            soft_maxima.append(th.log(total))
            divergence = 0.0
            for b, q in otherwise.items():
                p = float((th.exp(q) / total).detach())
                beta = math.exp(float(batch["behaviour_log_probs"][e, t, i, b]))
                divergence += p * (math.log(p) - math.log(beta + 1e-5))
            divergences.append(divergence)
        if inverse_temperature == 100:
            share = [float(i == divergences.index(max(divergences))) for i in range(3)]
        else:
            share = [math.exp(inverse_temperature * d) for d in divergences]
            share = [s / sum(share) for s in share]
        penalty += sum(s * m for s, m in zip(share, soft_maxima)) - literal.q_tot(e, t, played)
        weights.append(max(share))
        of_all += divergences
    cql_loss = penalty / len(literal.cells)
    td_loss = literal.td_loss()
    literal.assert_trained_as(logger, td_loss + 3 * cql_loss, td_loss=td_loss, cql_loss=cql_loss)
    mean = sum(weights) / len(weights)
    assert logger.stats["lambda_max"] == [pytest.approx(mean, rel=1e-3)]
    assert logger.stats["divergence_mean"] == [pytest.approx(sum(of_all) / len(of_all), rel=1e-3)]


def test_lambda_is_even_soft_or_all_on_one_agent():
    divergence = th.tensor([[0.30, 0.31, 0.10], [2.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    assert th.allclose(agent_weights(divergence, 0.0), th.full((3, 3), 1 / 3))
    # softmax(100 x) would give 0.31 against 0.30 no more than 0.73
    assert agent_weights(divergence, 100.0).tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]
    soft = agent_weights(divergence, 2.0)
    assert th.allclose(soft.sum(-1), th.ones(3))
    assert soft[1, 0].item() == pytest.approx(math.exp(4) / (math.exp(4) + 2), rel=1e-5)


def test_where_no_agent_has_a_choice_there_is_no_penalty():
    learner, logger, args = build("cfcql", global_cql_alpha=50.0)
    learner.train(without_choice(random_batch(LENGTHS, args)), 0, 8)
    assert logger.stats["cql_loss"] == [pytest.approx(0, abs=1e-6)]


def totals_on_game(alg, map_name, quality, updates, **overrides):
    """(the greedy actions, Q_tot of every joint action `[A, A]`) after `updates`."""
    q, _, learner = train_on_game(
        alg, map_name, quality, updates, hidden_dim=16, lr=0.01, **overrides
    )
    with th.no_grad():
        totals = learner.mixer.weights(th.ones(1, 1)).mix_many(th.cartesian_prod(*q)[None])
    return q.argmax(-1).tolist(), totals.view(len(q[0]), -1)


def test_the_penalty_alone_clones_each_agent():
    """Even lambda: the penalty is the log-pseudolikelihood of exp Q_tot, whose optimum on a product
    of policies is softmax_b q^i(b) = beta_i, wherever the other agent stands."""
    greedy, totals = totals_on_game(
        "cfcql", "m_ne", "imbalanced", 250, softmax_temp=0.0, global_cql_alpha=1e4
    )
    beta = th.tensor([0.8, 0.1, 0.1])
    assert th.allclose(totals.softmax(0), beta[:, None].expand(3, 3), atol=0.02)
    assert th.allclose(totals.softmax(1), beta.expand(3, 3), atol=0.02)
    assert greedy == [0, 0]


def test_without_a_penalty_monotone_mixing_ends_at_bb_on_xor():
    """Appendix D of the InSPO paper: Q(AB) = Q(BA) > Q(AA) forces Q_i(B) > Q_i(A)."""
    greedy, totals = totals_on_game("cfcql", "xor", "b", 200, global_cql_alpha=0.0)
    seen = th.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert th.allclose(totals[:1], seen[:1], atol=0.05)
    assert totals[1, 0].item() == pytest.approx(1, abs=0.05)
    assert greedy == [1, 1]


PUBLISHED = {
    "2s3z": [(0.1, 0.5), (5, 0.1), (50, 0.5), (0.5, 0)],
    "3s_vs_5z": [(50, 0), (50, 0), (50, 1), (50, 0)],
    "5m_vs_6m": [(50, 0.5), (50, 0.5), (50, 100), (50, 0.5)],
    "6h_vs_8z": [(50, 1), (50, 0.5), (50, 0), (50, 1)],
}


def chosen(*words, env="sc2_offline"):
    """(alpha, inverse temperature, lambda of the returns), and the notes of presets."""
    config = load_config(["--config=cfcql", f"--env-config={env}", *words])
    keys = ("global_cql_alpha", "softmax_temp", "td_lambda")
    return [config.values[key] for key in keys], config.notes


@pytest.mark.parametrize("map_name", PUBLISHED)
def test_the_published_hyperparameters_are_chosen_by_map_and_quality(map_name):
    qualities = ("medium", "medium_replay", "expert", "mixed")
    assert chosen(env="smax_offline")[0][:2] == [50, 5]  # elsewhere: their code's defaults
    for quality, expected in zip(qualities, PUBLISHED[map_name], strict=True):
        words = ["with", f"map_name={map_name}", f"quality={quality}"]
        values, notes = chosen(*words)
        assert values == [*expected, 0.3 if map_name == "6h_vs_8z" else 0.6]
        assert any("the authors' table" in note for note in notes)
        assert chosen(*words, "use_presets=False")[0][:2] == [50, 5]
    macql = ["--config=macql", "--env-config=sc2_offline", "with", f"map_name={map_name}"]
    found, keys = load_config(macql).values, ("global_cql_alpha", "raw_sample_actions")
    assert [found[key] for key in (*keys, "td_lambda", "target_update_interval")] == [
        5, 100, 0.3 if map_name == "6h_vs_8z" else 0.6, 25,
    ]  # fmt: skip


# MACQL


@pytest.mark.parametrize(
    ("td_lambda", "include"), [(0.0, False), (0.6, False), (0.6, True)]
)  # fmt: skip
def test_loss_and_step_of_macql_are_those_of_the_loops(td_lambda, include):
    draws = {"raw_sample_actions": 7, "cql_include_data": include}
    learner, logger, args = build("macql", td_lambda=td_lambda, global_cql_alpha=3.0, **draws)
    batch = random_batch(LENGTHS, args, pad=2)
    literal = Literal(learner, batch, args)
    cells = literal.cells  # in the order in which the learner draws for them
    th.manual_seed(4)
    drawn = draw_available(th.stack([batch["avail_actions"][e, t] for e, t in cells]), 7)
    penalty = 0.0
    for (e, t), joints in zip(cells, drawn.transpose(1, 2).tolist(), strict=True):
        for joint in joints:
            assert all(a in literal.possible(e, t, i) for i, a in enumerate(joint))
        joints = [*joints, literal.played(e, t)] if include else joints
        total = sum(th.exp(literal.q_tot(e, t, joint)) for joint in joints)
        penalty += th.log(total) - literal.q_tot(e, t, literal.played(e, t))
    td_loss, cql_loss = literal.td_loss(), penalty / len(cells)
    th.manual_seed(4)
    literal.assert_trained_as(logger, td_loss + 3 * cql_loss, td_loss=td_loss, cql_loss=cql_loss)


@pytest.mark.parametrize(("mixer", "draws"), [("independent", 0), ("vdn", 5), ("independent", 5)])
def test_loss_of_independent_and_added_values_is_that_of_the_loops(mixer, draws):
    learner, logger, args = build(
        "idqn_cql", mixer=mixer, raw_sample_actions=draws, td_lambda=0.6, cql_include_data=True
    )
    batch = random_batch(LENGTHS, args, pad=2)
    nets = {name: copy.deepcopy(net).double() for name, net in learner.networks.items()}
    cells = transitions_of(batch)
    q = [play_agent(nets["agent"], batch, args, i) for i in range(3)]
    target_q = [play_agent(nets["target_agent"], batch, args, i) for i in range(3)]
    th.manual_seed(4)
    drawn = draw_available(
        th.stack([batch["avail_actions"][e, t] for e, t in cells]), max(draws, 1)
    )

    def total(values):
        return [sum(values)] if mixer == "vdn" else values

    following = {}
    for e, t in cells:
        best = [
            max(available(batch, e, t + 1, i), key=lambda a, i=i: float(q[i][e, t + 1][a].detach()))
            for i in range(3)
        ]
        following[e, t] = total([target_q[i][e, t + 1][a].detach() for i, a in enumerate(best)])
    td, penalty = [], []
    for k in range(len(following[cells[0]])):
        values = {c: of[k] for c, of in following.items()}
        y = td_lambda_loop(batch, values, args.gamma, args.td_lambda)
        for m, (e, t) in enumerate(cells):
            joint = batch["actions"][e, t, :, 0].tolist()
            taken = total([q[i][e, t][a] for i, a in enumerate(joint)])[k]
            td.append(0.5 * (taken - y[e, t]) ** 2)
            others = [[*row, a] for row, a in zip(drawn[m].tolist(), joint)]
            if draws == 0:
                others = [available(batch, e, t, i) for i in range(3)]
                rows = [th.stack([q[k][e, t][b] for b in others[k]])]
            elif mixer == "vdn":
                rows = [
                    th.stack([sum(q[i][e, t][a] for i, a in enumerate(b)) for b in zip(*others)])
                ]
            else:
                rows = [th.stack([q[k][e, t][b] for b in others[k]])]
            penalty.append(th.log(rows[0].exp().sum()) - taken)
    td_loss, cql_loss = sum(td) / len(td), sum(penalty) / len(penalty)
    descend_plainly(learner, 0.02)
    descend(nets["agent"].parameters(), td_loss + args.global_cql_alpha * cql_loss, 0.02)
    th.manual_seed(4)
    learner.train(batch, 0, 8)
    assert logger.stats["td_loss"] == [pytest.approx(td_loss.item(), rel=1e-4)]
    assert logger.stats["cql_loss"] == [pytest.approx(cql_loss.item(), rel=1e-4)]
    assert_close_weights(learner.networks["agent"], nets["agent"])


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


def test_the_penalty_alone_clones_the_joint_action():
    """softmax Q_tot over joint actions becomes the data's distribution, here a product."""
    greedy, totals = totals_on_game(
        "macql", "m_ne", "imbalanced", 200, global_cql_alpha=1e4, raw_sample_actions=500
    )
    beta = th.tensor([0.8, 0.1, 0.1])
    found = totals.flatten().softmax(0).view(3, 3)
    assert th.allclose(found, th.outer(beta, beta), atol=0.04)  # K joint actions, not all
    assert greedy == [0, 0]
