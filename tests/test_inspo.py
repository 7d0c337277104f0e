"""InSPO's learner against a literal version: loops over episodes, steps, agents and actions."""

import copy
import math
from itertools import pairwise

import cases
import pytest
import torch as th

from inspo.learners import inspo_learner
from inspo.learners.ratios import (
    advantage_weights,
    effective_share,
    others_log_ratio,
    ratio_exponent,
    resample,
)
from inspo.offline.behaviour import Behaviour
from inspo.utils.errors import ConfigError


def make_inspo(**overrides):
    """Eq. 23 and Eq. 24 as printed; no randomness or minibatches, past the warm-up, at half of the
    schedule.

    Returns learner, logger, args and a batch.
    """
    defaults = {
        "resample": "weight", "agent_order": "fixed", "critic_minibatch": 0, "critic_warmup": 0.0,
        "td_lambda": 0.0, "alpha": 0.5, "target_tau": 0.3, "beta": 0.2, "beta_hold": 2.0,
        "beta_end": 3.0, "tune_alpha": False, "ratio": "geometric", "joint_kl_coef": 0.0,
    }  # fmt: skip
    learner, logger, args = cases.build("inspo", **(defaults | overrides))
    return learner, logger, args, cases.random_batch(cases.LENGTHS, args, pad=1)


# The pure functions


def test_ratio_by_hand_and_by_loop():
    log_pi = th.log(th.tensor([[0.5, 0.2, 0.4]]))
    log_mu_others = th.log(th.tensor([0.1]))
    assert others_log_ratio(log_pi, log_mu_others, 1).item() == pytest.approx(math.log(2))
    log_pi, others = -3 * th.rand(50, 4), -5 * th.rand(50)
    for i in range(4):
        ratio = others_log_ratio(log_pi, others, i).exp()
        for m in range(50):
            product = math.prod(math.exp(log_pi[m, j]) for j in range(4) if j != i)
            assert ratio[m].item() == pytest.approx(product / math.exp(others[m]), rel=1e-4)
    log_pi = th.tensor([[0.0, -1e10], [0.0, 0.0]])  # floors, and a lone agent
    found = others_log_ratio(log_pi, th.tensor([-0.1, -99.0]), 0).tolist()
    assert found == pytest.approx([-22.9, 46.0])
    assert others_log_ratio(th.tensor([[-0.7]]), th.zeros(1), 0).item() == 0


@pytest.mark.parametrize("n_agents", [1, 2, 4])
def test_the_exponents_of_the_paper(n_agents):
    log_ratio = th.linspace(-3, 1, 7)
    found = [ratio_exponent(log_ratio, how, n_agents, 0.5) for how in ("geometric", "full", "none")]
    assert found == [pytest.approx(1 / max(n_agents - 1, 1)), 1, 0]


def test_the_adaptive_exponent_is_the_largest_that_keeps_the_share():
    log_ratio = 5 * th.randn(400, generator=th.Generator().manual_seed(0))
    shares = [effective_share(p * log_ratio).item() for p in th.linspace(0, 1, 101)]
    assert shares[0] == pytest.approx(1) and all(a > b for a, b in pairwise(shares))
    for share in (0.9, 0.3, 0.05):
        p = ratio_exponent(log_ratio, "adaptive", 5, share)
        assert 0 < p < 1
        rho = (p * log_ratio).double().exp()
        assert rho.sum() ** 2 / (rho**2).sum() / 400 == pytest.approx(share, rel=1e-3)
    assert ratio_exponent(log_ratio, "adaptive", 5, 0.0) == 1  # nothing to keep: Eq. 14
    assert ratio_exponent(0.1 * log_ratio, "adaptive", 5, 0.3) == 1  # tame enough: Eq. 14
    assert ratio_exponent(log_ratio, "adaptive", 5, 1.0) == pytest.approx(0, abs=1e-3)


def test_drawing_counts_in_proportion_to_the_ratio():
    th.manual_seed(0)
    ratio = th.tensor([0.1, 2.0, 0.4, 1.5, 0.0001])
    counts = th.zeros(5)
    for _ in range(2000):
        index, weight = resample(ratio.log(), "draw")
        assert (len(index), weight.tolist()) == (5, [1] * 5)
        counts += th.bincount(index, minlength=5)
    expected = 5 * ratio / ratio.sum()
    assert th.allclose(counts / 2000, expected, atol=0.07)
    index, weight = resample(ratio.log(), "weight")
    assert sorted(index.tolist()) == [0, 1, 2, 3, 4]
    assert th.allclose(weight, expected[index])
    assert weight.mean().item() == pytest.approx(1)


def test_advantage_weights_by_hand():
    weights, exponent = advantage_weights(
        th.tensor([0.5, 9.0, -2.0]), th.log(th.tensor([0.5, 1.0, 1e-9])), th.tensor(0.7), 0.3, 5.0
    )
    expected = [0.5 + 0.3 * math.log(2), 9.0, -2.0 + 0.3 * 10]  # log mu is floored at -10
    assert exponent.tolist() == pytest.approx(expected)
    assert weights.tolist() == pytest.approx([math.exp(min(x, 5.0)) for x in expected])


# One whole call of train, literally


class Literal:
    """Algorithm 1 on one batch, written with loops, in double precision, on copies of the nets."""

    def __init__(self, learner, batch):
        self.args, self.batch = learner.args, batch
        self.cells = cases.transitions_of(batch)
        self.agents = copy.deepcopy(learner.mac.agent.agents).double()
        self.critics = copy.deepcopy(learner.critics).double()
        self.targets = copy.deepcopy(learner.target_critics).double()
        self.alpha = math.exp(learner.temperature["log_alpha"].item())
        self.losses = {"critic": {}, "cql": {}, "policy": {}}

    def policies(self, i):
        """(e, t) -> log pi_i `[A]`."""
        outputs = cases.play_agent(self.agents[i], self.batch, self.args, i)
        avail = self.batch["avail_actions"]
        return {
            (e, t): cases.log_softmax_loop(out, avail[e, t, i]) for (e, t), out in outputs.items()
        }

    def critic_input(self, e, t, i):
        own = cases.inputs_loop(self.batch, self.args, e, t, i)
        return th.cat([self.batch["state"][e, t], own]).double()

    def action(self, e, t, i):
        return int(self.batch["actions"][e, t, i, 0])

    def available(self, e, t, i):
        return cases.available(self.batch, e, t, i)

    def weights(self, i, taken):
        """Eq. 14, 23 and the self-normalised form of 15: (e, t) -> weight, their mean is 1."""
        rho = {}
        for e, t in self.cells:
            log_ratio = -self.batch["behaviour_log_prob_others"][e, t, i].double()
            for j in range(self.args.n_agents):
                if j != i:
                    log_ratio = log_ratio + taken[j][e, t]
            rho[e, t] = math.exp(log_ratio)

        def share(p):
            total = sum(value**p for value in rho.values())
            return total**2 / sum(value ** (2 * p) for value in rho.values()) / len(rho)

        exponent = {"geometric": 1 / (self.args.n_agents - 1), "full": 1.0, "none": 0.0}.get(
            self.args.ratio
        )
        if exponent is None:
            tried = [k / 20000 for k in range(20001)]
            exponent = max(p for p in tried if share(p) >= self.args.ratio_share)
        rho = {cell: value**exponent for cell, value in rho.items()}
        total = sum(rho.values())
        return {cell: len(rho) * value / total for cell, value in rho.items()}

    def lambda_returns(self, value, paid):
        """y = sum of lambda-weighted n-step returns; every step to a state s' pays `paid`."""
        gamma, lam = self.args.gamma, self.args.td_lambda
        y = {}
        for e, t in self.cells:
            last = max(u for f, u in self.cells if f == e)
            so_far, total = 0.0, 0.0
            for n, u in enumerate(range(t, last + 1)):
                going_on = 1 - float(self.batch["terminated"][e, u])
                so_far += gamma**n * float(self.batch["reward"][e, u])
                so_far -= gamma ** (n + 1) * going_on * paid[e, u]
                n_step = so_far + gamma ** (n + 1) * going_on * value[e, u]
                total += lam**n * n_step * (1 if u == last else 1 - lam)
            y[e, t] = total
        return y

    def critic_loss(self, i, log_pi, weight, beta, target):
        """Eq. 24."""
        log_mu = self.batch["behaviour_log_probs"].double()
        value, paid = {}, {}  # of the state that a transition leads to
        for e, t in self.cells:
            q = target(self.critic_input(e, t + 1, i)).detach()
            value[e, t] = paid[e, t] = 0.0
            for a in self.available(e, t + 1, i):
                lp, lm = log_pi[e, t + 1][a], log_mu[e, t + 1, i, a]
                value[e, t] += lp.exp() * q[a]
                paid[e, t] += lp.exp() * (self.alpha * (lp - lm) + beta * lp)
        y = self.lambda_returns(value, paid)
        td, cql = 0.0, 0.0
        for e, t in self.cells:
            q = self.critics[i](self.critic_input(e, t, i))
            td = td + weight[e, t] * (q[self.action(e, t, i)] - y[e, t]) ** 2
            possible = self.available(e, t, i)
            lse = th.log(sum(q[a].exp() for a in possible))
            expected = sum(log_mu[e, t, i, a].exp() * q[a] for a in possible)
            cql = cql + weight[e, t] * (lse - expected)
        return td / len(self.cells), cql / len(self.cells)

    def constants(self, i, log_pi, weight, beta, critic):
        """What stands before -log pi_i(a_i) in Eq. 20, of every cell."""
        constants = {}
        for e, t in self.cells:
            q = critic(self.critic_input(e, t, i)).detach()
            a = self.action(e, t, i)
            baseline = sum(log_pi[e, t][b].detach().exp() * q[b] for b in self.available(e, t, i))
            log_mu = max(float(self.batch["behaviour_log_probs"][e, t, i, a]), -10.0)
            z = float(q[a] - baseline - beta * log_mu) / (self.alpha + beta)
            w = math.exp(min(z, self.args.weight_clip)) if self.args.advantage_weighting else 1.0
            constants[e, t] = float(weight[e, t]) * w
        return constants

    def policy_loss(self, i, constants):
        """Eq. 20 of the weights that the agent has now."""
        log_pi = self.policies(i)
        rows = [-constants[c] * log_pi[c][self.action(*c, i)] for c in self.cells]
        return sum(rows) / len(rows)

    def turn(self, i, taken, beta, lr):
        args, log_pi = self.args, {c: p.detach() for c, p in self.policies(i).items()}
        weight, target = self.weights(i, taken), copy.deepcopy(self.targets[i])
        self.losses["critic"][i], self.losses["cql"][i], self.losses["policy"][i] = [], [], []
        for _ in range(args.turn_steps):
            # y is that of the target critic as it is when the turn begins
            td, cql = self.critic_loss(i, log_pi, weight, beta, target)
            cases.descend(self.critics[i].parameters(), td + args.cql_alpha * cql, lr)
            with th.no_grad():
                pairs = zip(self.targets[i].parameters(), self.critics[i].parameters())
                for slow, online in pairs:
                    slow.copy_((1 - args.target_tau) * slow + args.target_tau * online)
            self.losses["critic"][i].append(td.item())
            self.losses["cql"][i].append(cql.item())
        critic = target if args.advantage_critic == "target" else self.critics[i]
        constants = self.constants(i, log_pi, weight, beta, critic)
        for _ in range(args.turn_steps):
            loss = self.policy_loss(i, constants)
            cases.descend(self.agents[i].parameters(), loss, lr)
            self.losses["policy"][i].append(loss.item())

    def taken(self, i):
        """(e, t) -> log pi_i of the action in the data, as the policy is now."""
        return {
            c: p[self.action(*c, i)].detach()
            for c, p in self.policies(i).items()
            if c in self.cells
        }

    def train(self, blocks, beta, lr):
        present = [self.taken(i) for i in range(self.args.n_agents)]
        for block in blocks:
            for i in block:
                self.turn(i, present, beta, lr)
            for i in block:
                present[i] = self.taken(i)

    def mean_loss(self, key):
        rows = [value for values in self.losses[key].values() for value in values]
        return sum(rows) / len(rows)


@pytest.mark.parametrize(
    ("blocks", "changes"),
    [
        ([[2], [0], [1]], {}),
        ([[2], [0], [1]], {"td_lambda": 0.8}),
        ([[2, 0], [1]], {"agent": "mlp_ns", "turn_steps": 3}),
        ([[2], [0], [1]], {"turn_steps": 2, "advantage_critic": "current", "td_lambda": 0.5}),
        ([[2], [0], [1]], {"beta": 0.0, "ratio": "full", "td_lambda": 1.0, "agent": "mlp_ns"}),
        ([[2], [0], [1]], {"ratio": "adaptive", "ratio_share": 0.7, "agent": "mlp_ns"}),
        ([[2], [0], [1]], {"ratio": "none", "agent": "mlp_ns"}),
        (
            [[2], [0], [1]],
            {"weight_clip": 0.1, "cql_alpha": 0.0, "obs_agent_id": True, "obs_last_action": False},
        ),
        ([[2], [0], [1]], {"advantage_weighting": False, "agent": "mlp_ns"}),
    ],
    ids=str,
)
def test_one_call_is_the_literal_algorithm(blocks, changes, monkeypatch):
    learner, logger, args, batch = make_inspo(**changes)
    cases.descend_plainly(learner, 0.2)
    monkeypatch.setattr(learner.mac, "draw_order", lambda *_: blocks)
    literal = Literal(learner, batch)
    literal.train(blocks, args.beta, 0.2)
    before = [p.clone() for p in learner.mac.parameters()]
    learner.train(batch, 50, 8)

    cases.assert_close_weights(learner.mac.agent.agents, literal.agents, 2e-5)
    cases.assert_close_weights(learner.critics, literal.critics, 2e-5)
    cases.assert_close_weights(learner.target_critics, literal.targets, 2e-5)
    moved = max((p - q).abs().max() for p, q in zip(learner.mac.parameters(), before))
    assert moved > 1e-3
    for key, name in (("critic", "critic_loss"), ("cql", "cql_loss"), ("policy", "policy_loss")):
        expected = literal.mean_loss(key)
        assert logger.stats[name] == [pytest.approx(expected, rel=1e-4, abs=1e-5)]


# Schedules and switches


def test_warm_up_trains_the_critics_alone():
    learner, logger, _, batch = make_inspo(critic_warmup=0.5, tune_alpha=True)
    policies, critics = copy.deepcopy(learner.mac.agent), copy.deepcopy(learner.critics)
    learner.train(batch, 49, 8)
    assert cases.same_weights(learner.mac.agent, policies)
    assert not any(cases.same_weights(*pair) for pair in zip(learner.critics, critics))
    assert "policy_loss" not in logger.stats and learner.stage == "critics alone until 50%"
    assert logger.stats["alpha"] == [pytest.approx(0.5)]
    learner.train(batch, 50, 8)
    assert not any(
        cases.same_weights(*pair) for pair in zip(learner.mac.agent.agents, policies.agents)
    )
    assert len(logger.stats["policy_loss"]) == 1 and not learner.stage


@pytest.mark.parametrize("start", [True, False])
def test_policies_start_as_the_behaviour_policies(start):
    learner, *_ = make_inspo(init_from_behaviour=start)
    before, other = copy.deepcopy(learner.mac.agent), copy.deepcopy(learner.mac.agent)
    with th.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    learner.start_from(Behaviour(other.state_dict(), None, None, None, {}))
    assert cases.same_weights(learner.mac.agent, other if start else before)


def test_beta_is_counted_over_the_policies_training():
    learner, logger, _, batch = make_inspo(
        critic_warmup=0.2, beta=4.0, beta_finish=1.0, beta_hold=0.25, beta_end=0.75
    )
    for t_env in (0, 20, 39, 60, 80, 99):
        learner.train(batch, t_env, 8)
    assert logger.stats["beta"] == pytest.approx([4, 4, 4, 2, 0, 0])


@pytest.mark.parametrize(("target", "sign"), [(0.0, 1), (50.0, -1)])
def test_the_temperature_grows_when_policies_are_too_far_from_the_data(target, sign):
    learner, logger, _, batch = make_inspo(tune_alpha=True, target_kl=target, alpha_lr=0.01)
    for t_env in (50, 51, 52):  # untrained policies: KL to mu is well above 0
        learner.train(batch, t_env, 8)
    assert logger.stats["kl"][0] > 0.05
    alphas = [0.5, *logger.stats["alpha"]]
    assert all(sign * (b - a) > 0 for a, b in pairwise(alphas))
    # Adam's first step on log alpha is its learning rate
    assert math.log(alphas[1] / 0.5) == pytest.approx(sign * 0.01, rel=1e-3)
    settings = {"tune_alpha": True, "target_kl": target, "alpha_lr": 1.0, "alpha_range": [0.3, 0.7]}
    learner, logger, _, batch = make_inspo(**settings)
    for t_env in (50, 51, 52):
        learner.train(batch, t_env, 8)
    assert logger.stats["alpha"][-1] == pytest.approx(0.7 if sign > 0 else 0.3)


def test_kl_is_the_mean_over_agents_with_a_choice():
    learner, logger, _, batch = make_inspo()
    literal = Literal(learner, batch)
    values = {i: [] for i in range(3)}
    for i in range(3):
        log_pi = literal.policies(i)
        for e, t in literal.cells:
            possible = literal.available(e, t, i)
            if len(possible) > 1:
                log_mu = batch["behaviour_log_probs"][e, t, i]
                kl = sum(log_pi[e, t][a].exp() * (log_pi[e, t][a] - log_mu[a]) for a in possible)
                values[i].append(kl.item())
    learner.train(batch, 50, 8)
    every = [x for kls in values.values() for x in kls]
    assert logger.stats["kl"] == [pytest.approx(sum(every) / len(every), rel=1e-4)]
    for i in range(3):
        mean = sum(values[i]) / len(values[i])
        assert logger.stats[f"kl_agent{i}"] == [pytest.approx(mean, rel=1e-4)]


def test_minibatches_use_every_transition_once(monkeypatch):
    learner, _, _, batch = make_inspo(critic_minibatch=5)  # 14 transitions: 5, 5, 4
    sizes = []
    real = inspo_learner.masked_logsumexp
    monkeypatch.setattr(
        inspo_learner,
        "masked_logsumexp",
        lambda q, avail: sizes.append(q.shape[:2]) or real(q, avail),
    )
    learner.train(batch, 50, 8)
    assert sizes == [(3, 5), (3, 5), (3, 4)]  # of all agents at once


def test_drawing_reweights_both_losses_alike(monkeypatch):
    """With draws fixed by hand, the losses are those of the weights that the counts give."""
    learner, _, args, batch = make_inspo(agent="mlp_ns", resample="draw")
    counts = th.tensor([3, 0, 1, 1, 0, 2, 1, 0, 0, 4, 1, 0, 1, 0])
    index = th.arange(14).repeat_interleave(counts)
    monkeypatch.setattr(inspo_learner, "resample", lambda ratio, how: (index, th.ones(14)))
    cases.descend_plainly(learner, 0.2)
    literal = Literal(learner, batch)
    weight = {cell: float(count) for cell, count in zip(literal.cells, counts)}
    monkeypatch.setattr(literal, "weights", lambda i, taken: weight)
    literal.train([[0], [1], [2]], args.beta, 0.2)
    learner.train(batch, 50, 8)
    cases.assert_close_weights(learner.mac.agent.agents, literal.agents, 2e-5)
    cases.assert_close_weights(learner.critics, literal.critics, 2e-5)


def test_awr_is_inspo_without_ratio_and_sequence_and_needs_no_policy_of_the_others():
    """Whatever mu^{-i} says, and without the key: the same weights, to the bit."""
    after = []
    for algorithm, settings in (
        ("awr", {}),
        ("inspo", {"ratio": "none", "joint_kl_coef": 0.0, "blocks": 1, "resample": "weight"}),
    ):
        learner, _, args = cases.build(algorithm, critic_warmup=0.0, **settings)
        batch = cases.random_batch(cases.LENGTHS, args)
        if algorithm == "awr":
            del batch.data["behaviour_log_prob_others"]
        th.manual_seed(5)
        learner.train(batch, 50, 8)
        after.append(th.cat([p.flatten() for p in learner.mac.parameters()]))
    assert th.equal(*after)


@pytest.mark.parametrize("settings", [{"ratio": "full"}, {"ratio": "none", "joint_kl_coef": 1.0}])
def test_a_ratio_needs_the_policy_of_the_others(settings):
    args = cases.make_args("inspo", **settings)
    args.behaviour.others = "none"
    with pytest.raises(ConfigError, match=r"behaviour\.others"):
        cases.make_learner(args)
