"""InSPO's learner against a literal version: loops over episodes, steps, agents and actions."""

import copy
import math
from itertools import pairwise

import cases
import pytest
import torch as th

from inspo.learners import inspo_learner
from inspo.learners.inspo_learner import advantage_weights, others_ratio, resample
from inspo.offline.behaviour import Behaviour


def make_inspo(**overrides):
    """Without randomness or minibatches, past the warm-up, at half of the schedule.

    Returns learner, logger, args and a batch.
    """
    defaults = {
        "resample": "weight", "agent_order": "fixed", "critic_minibatch": 0, "critic_warmup": 0.0,
        "td_lambda": 0.0, "alpha": 0.5, "target_tau": 0.3, "beta": 0.2, "beta_hold": 2.0,
        "beta_end": 3.0, "tune_alpha": False,
    }  # fmt: skip
    learner, logger, args = cases.build("inspo", **(defaults | overrides))
    return learner, logger, args, cases.random_batch(cases.LENGTHS, args, pad=1)


# The pure functions


def test_ratio_by_hand_and_by_loop():
    log_pi = th.log(th.tensor([[0.5, 0.2, 0.4]]))
    log_mu_others = th.log(th.tensor([0.1]))
    rho, log_ratio = others_ratio(log_pi, log_mu_others, 1, 0.5)
    assert rho.item() == pytest.approx(math.sqrt(0.5 * 0.4 / 0.1))
    assert log_ratio.item() == pytest.approx(math.log(2))
    log_pi, others = -3 * th.rand(50, 4), -5 * th.rand(50)
    for i in range(4):
        rho, _ = others_ratio(log_pi, others, i, 1 / 3)
        for m in range(50):
            product = math.prod(math.exp(log_pi[m, j]) for j in range(4) if j != i)
            expected = (product / math.exp(others[m])) ** (1 / 3)
            assert rho[m].item() == pytest.approx(expected, rel=1e-4)


def test_ratio_bounds_and_one_agent():
    rho, _ = others_ratio(th.tensor([[0.0, -1e10], [0.0, 0.0]]), th.tensor([-0.1, -50.0]), 0, 1.0)
    assert rho.tolist() == pytest.approx([1e-8, 100.0])
    assert others_ratio(th.tensor([[-0.7]]), th.zeros(1), 0, 1.0)[0].item() == 1


def test_drawing_counts_in_proportion_to_the_ratio():
    th.manual_seed(0)
    ratio = th.tensor([0.1, 2.0, 0.4, 1.5, 0.0001])
    counts = th.zeros(5)
    for _ in range(4000):
        index, weight = resample(ratio, "draw")
        assert (len(index), weight.tolist()) == (5, [1] * 5)
        counts += th.bincount(index, minlength=5)
    expected = 5 * ratio / ratio.sum()
    assert th.allclose(counts / 4000, expected, atol=0.05)
    index, weight = resample(ratio, "weight")
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
            exponent = 1 / (self.args.n_agents - 1) if self.args.geometric_mean else 1.0
            rho[e, t] = min(max(math.exp(exponent * log_ratio), 1e-8), 100.0)
        total = sum(rho.values())
        return {cell: len(rho) * value / total for cell, value in rho.items()}

    def critic_loss(self, i, log_pi, weight, beta):
        """Eq. 24."""
        log_mu = self.batch["behaviour_log_probs"].double()
        next_value = {}
        for e, t in self.cells:
            q = self.targets[i](self.critic_input(e, t + 1, i))
            value = 0.0
            for a in self.available(e, t + 1, i):
                lp, lm = log_pi[e, t + 1][a], log_mu[e, t + 1, i, a]
                value = value + lp.exp() * (q[a] - self.alpha * (lp - lm) - beta * lp)
            next_value[e, t] = value.detach()
        y = cases.td_lambda_loop(self.batch, next_value, self.args.gamma, self.args.td_lambda)
        td, cql = 0.0, 0.0
        for e, t in self.cells:
            q = self.critics[i](self.critic_input(e, t, i))
            td = td + weight[e, t] * (q[self.action(e, t, i)] - y[e, t]) ** 2
            possible = self.available(e, t, i)
            lse = th.log(sum(q[a].exp() for a in possible))
            expected = sum(log_mu[e, t, i, a].exp() * q[a] for a in possible)
            cql = cql + weight[e, t] * (lse - expected)
        return td / len(self.cells), cql / len(self.cells)

    def policy_loss(self, i, log_pi, weight, beta):
        """Eq. 20; the advantage is a constant."""
        total = 0.0
        for e, t in self.cells:
            q = self.targets[i](self.critic_input(e, t, i)).detach()
            a = self.action(e, t, i)
            baseline = sum(log_pi[e, t][b].exp() * q[b] for b in self.available(e, t, i)).detach()
            log_mu = max(float(self.batch["behaviour_log_probs"][e, t, i, a]), -10.0)
            z = (q[a] - baseline - beta * log_mu) / (self.alpha + beta)
            w = math.exp(min(z, self.args.weight_clip)) if self.args.advantage_weighting else 1.0
            total = total - weight[e, t] * w * log_pi[e, t][a]
        return total / len(self.cells)

    def train(self, order, beta, lr):
        log_pi = [self.policies(i) for i in range(self.args.n_agents)]

        def taken(i, policy):
            return {c: policy[c][self.action(*c, i)].detach() for c in self.cells}

        old = [taken(i, log_pi[i]) for i in range(self.args.n_agents)]
        present = list(old)
        for i in order:
            joint = present if self.args.update == "sequential" else old
            weight = self.weights(i, joint)
            frozen = {cell: value.detach() for cell, value in log_pi[i].items()}
            td, cql = self.critic_loss(i, frozen, weight, beta)
            self.losses["critic"][i], self.losses["cql"][i] = td.item(), cql.item()
            # A is read from the target critic as it is when the agent's turn begins.
            loss = self.policy_loss(i, log_pi[i], weight, beta)
            cases.descend(self.critics[i].parameters(), td + self.args.cql_alpha * cql, lr)
            tau = self.args.target_tau
            with th.no_grad():
                pairs = zip(self.targets[i].parameters(), self.critics[i].parameters())
                for target, online in pairs:
                    target.copy_((1 - tau) * target + tau * online)
            self.losses["policy"][i] = loss.item()
            cases.descend(self.agents[i].parameters(), loss, lr)
            present[i] = taken(i, self.policies(i))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"td_lambda": 0.8},
        {"agent": "mlp_ns", "update": "simultaneous"},
        {"beta": 0.0, "geometric_mean": False, "td_lambda": 1.0, "agent": "mlp_ns"},
        {"weight_clip": 0.1, "cql_alpha": 0.0, "obs_agent_id": True, "obs_last_action": False},
        {"advantage_weighting": False, "agent": "mlp_ns"},
    ],
    ids=["printed", "td_lambda", "simultaneous", "plain", "clipped", "unweighted"],
)
def test_one_call_is_the_literal_algorithm(changes, monkeypatch):
    learner, logger, args, batch = make_inspo(**changes)
    cases.descend_plainly(learner, 0.2)
    monkeypatch.setattr(learner.mac, "draw_order", lambda *_: [2, 0, 1])
    literal = Literal(learner, batch)
    literal.train([2, 0, 1], args.beta, 0.2)
    before = [p.clone() for p in learner.mac.parameters()]
    learner.train(batch, 50, 8)

    cases.assert_close_weights(learner.mac.agent.agents, literal.agents, 2e-5)
    cases.assert_close_weights(learner.critics, literal.critics, 2e-5)
    cases.assert_close_weights(learner.target_critics, literal.targets, 2e-5)
    moved = max((p - q).abs().max() for p, q in zip(learner.mac.parameters(), before))
    assert moved > 1e-3
    for key, name in (("critic", "critic_loss"), ("cql", "cql_loss"), ("policy", "policy_loss")):
        expected = sum(literal.losses[key].values()) / 3
        assert logger.stats[name] == [pytest.approx(expected, rel=1e-4, abs=1e-5)]


def loss_of(literal, i, constants):
    """Eq. 20 as a function of the weights that `literal.agents[i]` has now."""
    now = literal.policies(i)
    rows = [constants[c] * now[c][literal.action(*c, i)].item() for c in literal.cells]
    return sum(rows) / len(rows)


def test_gradient_of_the_policy_loss_by_finite_differences(monkeypatch):
    """The learner's own gradient against differences of the literal loss."""
    learner, _, args, batch = make_inspo(agent="rnn_ns", hidden_dim=4)
    literal = Literal(learner, batch)
    gradients = {}

    def record(loss, optimiser, clip):
        for name, candidate in learner.optimisers.items():
            if candidate is optimiser:
                parameters = [p for group in optimiser.param_groups for p in group["params"]]
                gradients[name] = th.autograd.grad(loss, parameters)
        return th.zeros(())  # nothing moves

    monkeypatch.setattr(inspo_learner, "optimise", record)
    args.target_tau = 0.0
    learner.train(batch, 50, 8)
    log_pi = [literal.policies(i) for i in range(3)]
    taken = [
        {c: log_pi[i][c][literal.action(*c, i)].detach() for c in literal.cells} for i in range(3)
    ]
    rng = th.Generator().manual_seed(0)
    for i in (0, 2):
        weight = literal.weights(i, taken)
        frozen = {cell: value.detach() for cell, value in log_pi[i].items()}
        constants = {}  # of Eq. 20, from the undisturbed policy
        for cell in literal.cells:
            single = copy.copy(literal)
            single.cells = [cell]
            row = single.policy_loss(i, frozen, {cell: weight[cell]}, args.beta)
            log_prob = float(frozen[cell][literal.action(*cell, i)])
            constants[cell] = float(row) / log_prob if log_prob else 0.0  # 0: no choice

        for k, parameter in enumerate(literal.agents[i].parameters()):
            place = int(th.randint(parameter.numel(), (), generator=rng))
            flat, eps = parameter.data.view(-1), 1e-5
            flat[place] += eps
            up = loss_of(literal, i, constants)
            flat[place] -= 2 * eps
            down = loss_of(literal, i, constants)
            flat[place] += eps
            found = gradients[f"policy_{i}"][k].flatten()[place].item()
            assert found == pytest.approx((up - down) / (2 * eps), rel=1e-3, abs=1e-5)


# Schedules and switches


def test_warm_up_trains_the_critics_alone():
    learner, logger, _, batch = make_inspo(critic_warmup=0.5, tune_alpha=True)
    policies, critics = copy.deepcopy(learner.mac.agent), copy.deepcopy(learner.critics)
    learner.train(batch, 49, 8)
    assert cases.same_weights(learner.mac.agent, policies)
    assert not any(cases.same_weights(*pair) for pair in zip(learner.critics, critics))
    assert "policy_loss" not in logger.stats
    assert logger.stats["alpha"] == [pytest.approx(0.5)]
    learner.train(batch, 50, 8)
    assert not any(
        cases.same_weights(*pair) for pair in zip(learner.mac.agent.agents, policies.agents)
    )
    assert len(logger.stats["policy_loss"]) == 1


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


def test_the_temperature_stays_in_its_range():
    learner, logger, _, batch = make_inspo(
        tune_alpha=True, target_kl=50.0, alpha_lr=1.0, alpha_range=[0.3, 0.7]
    )
    for t_env in (50, 51, 52):
        learner.train(batch, t_env, 8)
    assert logger.stats["alpha"][-1] == pytest.approx(0.3)


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


def test_ratio_is_logged_as_one_when_the_policies_are_mu():
    """pi = mu and independent agents in the data: rho = 1, no transition counts more."""
    learner, logger, _, batch = make_inspo(agent="mlp_ns", critic_warmup=0.9)
    literal = Literal(learner, batch)
    for i in range(3):
        for (e, t), log_pi in literal.policies(i).items():
            batch["behaviour_log_probs"][e, t, i] = log_pi.float().detach()
    for e, t in literal.cells:
        log_mu = [batch["behaviour_log_probs"][e, t, j, literal.action(e, t, j)] for j in range(3)]
        for i in range(3):
            others = sum(log_mu[j] for j in range(3) if j != i)
            batch["behaviour_log_prob_others"][e, t, i] = others
    learner.train(batch, 0, 8)
    for key, value in (("ratio_mean", 1), ("ess_share", 1), ("kl", 0)):
        assert logger.stats[key] == [pytest.approx(value, abs=1e-5)]


def test_an_agent_without_a_choice_is_at_no_distance_from_the_data():
    learner, logger, _, batch = make_inspo()
    learner.train(cases.without_choice(batch, 1), 50, 8)
    assert logger.stats["kl_agent1"] == [0]


def test_minibatches_use_every_transition_once(monkeypatch):
    learner, _, _, batch = make_inspo(critic_minibatch=5)  # 14 transitions: 5, 5, 4
    sizes = []
    real = inspo_learner.masked_logsumexp
    monkeypatch.setattr(
        inspo_learner, "masked_logsumexp", lambda q, avail: sizes.append(len(q)) or real(q, avail)
    )
    learner.train(batch, 50, 8)
    assert sizes == [5, 5, 4] * 3


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
    literal.train([0, 1, 2], args.beta, 0.2)
    learner.train(batch, 50, 8)
    cases.assert_close_weights(learner.mac.agent.agents, literal.agents, 2e-5)
    cases.assert_close_weights(learner.critics, literal.critics, 2e-5)
