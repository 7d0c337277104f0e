"""AlberDICE's learner against a literal version: loops over episodes, steps, agents and actions."""

import copy
import math

import cases
import pytest
import torch as th
from torch import nn

from inspo.learners import alberdice_learner
from inspo.learners.alberdice_learner import between, gradient_penalty, others_ratio, resample
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.modules.mlp import MLP
from inspo.utils.errors import ConfigError

LENGTHS = [4, 1, 6, 3, 9]  # 1 and 3 are those of the episodes that end


def make_alberdice(**overrides):
    defaults = {"alpha_start": 2.0, "alpha_end": 0.5, "ratio_max": 1.5}
    learner, logger, args = cases.build("alberdice", **(defaults | overrides))
    with th.no_grad():  # policies that are not uniform, and none the same as another
        for network in (learner.mac.agent, learner.data_policies, learner.others):
            for p in network.parameters():
                p.add_(0.3 * th.randn(p.shape))
        for network in learner.others[2:]:
            network.out.bias[3] -= 40  # what the data never show costs 23 nats at most
    return learner, logger, args


# The pure functions


def test_ratio_by_hand():
    log_pi = th.log(th.tensor([[0.5, 0.4], [0.5, 0.9]]))
    log_mu = th.log(th.tensor([[0.2, 0.5], [0.1, 0.1]]))
    found = others_ratio(log_pi, log_mu, 30.0)
    assert found.tolist() == pytest.approx([0.5 * 0.4 / 0.1, 30.0])
    assert others_ratio(log_pi, log_mu, 100.0)[1].item() == pytest.approx(45.0)
    hopeless = others_ratio(th.tensor([[-1e10]]), th.tensor([[-0.1]]), 100.0)
    assert 0 < hopeless.item() < 1e-29
    assert others_ratio(th.zeros(3, 0), th.zeros(3, 0), 100.0).tolist() == [1, 1, 1]


def test_resampling_counts_in_proportion_to_the_ratio():
    th.manual_seed(0)
    ratio, n_still = th.tensor([0.1, 2.0, 0.4, 1.5, 0.0001]), 6
    total, parts = th.zeros(5), set()
    for _ in range(4000):
        rows, weight, still = resample(ratio, n_still)
        assert still.item() == pytest.approx(1 / 10.0001)
        assert weight.sum().item() + 6 * still.item() == pytest.approx(1)
        assert len(set(rows.tolist())) == len(rows)
        parts |= {round(x, 3) for x in (weight / weight.sum()).tolist()}
        total[rows] += weight
    assert parts <= {0.2, 0.4, 0.6, 0.8, 1.0}  # whole draws out of five
    assert th.allclose(total / 4000, ratio / 10.0001, atol=0.005)
    assert resample(ratio, th.tensor(0.0))[1].sum().item() == pytest.approx(1)


def test_points_between_pairs_lie_on_their_lines():
    th.manual_seed(0)
    states = th.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the last one is absorbing
    points = th.cat([between(states, 6) for _ in range(4000)])
    assert points.shape == (4000, 2)
    assert (points >= 0).all() and (points.sum(-1) <= 1 + 1e-6).all()
    # six of eight rows are absorbing: the mean of both coordinates, and how often both ends are
    assert th.allclose(points.mean(0), th.tensor([1 / 8, 6 / 8]), atol=0.02)
    both = (points == states[2]).all(-1).float().mean().item()
    assert both == pytest.approx(36 / 64, abs=0.03)
    assert between(states, th.tensor(0.0))[0, 1] == 0  # without absorbing rows it is not drawn


def test_gradient_penalty_by_differences():
    th.manual_seed(0)
    network, points = MLP(3, 8, 1).double(), th.randn(6, 3, dtype=th.double)
    expected = 0.0
    with th.no_grad():
        for x in points:
            for k in range(3):
                step = 1e-6 * th.eye(3, dtype=th.double)[k]
                expected += ((network(x + step) - network(x - step)) / 2e-6).item() ** 2 / 6
    assert gradient_penalty(network, points.clone()).item() == pytest.approx(expected, rel=1e-5)


# One whole call of train, literally


class Literal:
    """One call on one batch with loops, in double precision, on copies of the networks.

    Chances are taken from the learner: the weights of the draws and the points of the penalty, one
    of each for every agent in turn; they have tests of their own above.
    """

    def __init__(self, learner, batch, lr):
        self.args, self.batch, self.lr = learner.args, batch, lr
        self.cells = cases.transitions_of(batch)
        self.agents = copy.deepcopy(learner.mac.agent.agents).double()
        self.data_policies = copy.deepcopy(learner.data_policies.agents).double()
        self.others = copy.deepcopy(learner.others).double()
        self.values = copy.deepcopy(learner.values).double()
        self.advantages = copy.deepcopy(learner.advantages).double()
        self.fitted = copy.deepcopy(learner.fitted).double() if learner.fitted else None
        self.ratios = []

    def log_policy(self, networks, i):
        """(e, t) -> log-probabilities `[A]` of agent i."""
        outputs = cases.play_agent(networks[i], self.batch, self.args, i)
        avail = self.batch["avail_actions"]
        return {at: cases.log_softmax_loop(out, avail[at][i]) for at, out in outputs.items()}

    def value(self, i, at):
        """nu_i of a step, or of the absorbing state if `at` is None."""
        state = th.zeros(self.args.state_shape + 1, dtype=th.double)
        if at is None:
            state[-1] = 1.0
        else:
            state[:-1] = self.batch["state"][at].double()
        return self.values[i](state)[0]

    def conditional(self, i, at):
        """j -> log mu(. | s, a_i, a_<j)."""
        rows = (self.batch[key][at].unsqueeze(0) for key in ("state", "avail_actions", "actions"))
        state, avail, actions = rows
        if self.fitted:
            log_mu = self.batch["behaviour_log_probs"][at].unsqueeze(0).double()
            actions = actions.squeeze(-1)
            found = self.fitted.log_policies(i, state.double(), log_mu, avail, actions)[0]
            return {j: found[j] for j in range(self.args.n_agents) if j != i}
        found = self.others[i](state.double(), avail, actions.squeeze(-1))[0]
        return dict(zip([j for j in range(self.args.n_agents) if j != i], found))

    def still_rows(self):
        """(from, to) of every step after an end; None: the absorbing state."""
        rows = []
        for e in range(self.batch.batch_size):
            length = int(self.batch["filled"][e].sum()) - 1
            place = (e, length)
            if self.batch["terminated"][e, length - 1, 0]:
                for _ in range(length, self.args.episode_limit):
                    rows.append((place, None))
                    place = None
        return rows

    def clone(self, action):
        """log mu before a step of the data policies, agent by agent, and the loss. action: of
        (cell, agent)."""
        n = self.args.n_agents
        if self.fitted:
            log_mu = self.batch["behaviour_log_probs"].double()
            mu = [{at: log_mu[at][j] for at in self.cells} for j in range(n)]
        else:
            mu = [self.log_policy(self.data_policies, j) for j in range(n)]
        loss = -sum(mu[j][at][taken] for (at, j), taken in action.items()) / len(action)
        if not self.fitted:
            cases.descend(self.data_policies.parameters(), loss, self.lr)
        return [{at: row.detach() for at, row in of.items()} for of in mu], loss

    def sweep(self, alpha, weights, points):
        """weights[i]: cell -> weight of the draw. Returns the losses of each agent."""
        a, batch, n = self.args, self.batch, self.args.n_agents
        action = {(at, j): int(batch["actions"][at][j, 0]) for at in self.cells for j in range(n)}
        avail = {(at, j): cases.available(batch, *at, j) for at in self.cells for j in range(n)}
        losses = {key: [] for key in ("nu_loss", "e_loss", "policy_loss", "others_loss")}
        mu, data_loss = self.clone(action)

        policies = [self.log_policy(self.agents, j) for j in range(n)]
        still = self.still_rows()
        n_rows = len(self.cells) + len(still)
        for i in range(n):
            others_loss, e, ratio, cost = 0.0, {}, {}, {}
            for at in self.cells:
                kl, product = 0.0, 1.0
                for j, log_mu in self.conditional(i, at).items():
                    taken = log_mu[action[at, j]]
                    others_loss = others_loss - taken / ((n - 1) * len(self.cells))
                    product *= (policies[j][at][action[at, j]] - taken).exp().item()
                    for b in avail[at, j]:
                        log_pi = policies[j][at][b].item()
                        kl += math.exp(log_pi) * (log_pi - max(log_mu[b].item(), -23.0))
                ratio[at] = min(product, a.ratio_max) if a.use_ratio else 1.0
                cost[at] = alpha * a.kl_coef * kl
                after = self.value(i, (at[0], at[1] + 1))
                r = batch["reward"][at][0].double()
                e[at] = r - cost[at] + a.gamma * after - self.value(i, at)
            self.ratios.append(ratio)
            total = sum(ratio.values()) + len(still)
            inside, initial = 0.0, 0.0
            end_cost = sum(cost.values()) / len(cost) if a.ending == "mean" else 0.0
            for at in self.cells:
                inside = inside + weights[i][at] * th.exp(e[at] / alpha)
                initial = initial + self.value(i, at) / n_rows
            for place, following in still:
                step = a.gamma * self.value(i, following) - self.value(i, place) - end_cost
                inside = inside + th.exp(step / alpha) / total
                initial = initial + self.value(i, place) / n_rows
            slopes = 0.0
            for x in points[i]:
                x = x.double().detach().requires_grad_()
                (slope,) = th.autograd.grad(self.values[i](x)[0], x, create_graph=True)
                slopes = slopes + (slope**2).sum() / len(points[i])
            nu_loss = alpha * th.log(total / n_rows * inside) + (1 - a.gamma) * initial
            nu_loss = nu_loss + a.nu_grad_penalty_coeff * slopes

            e_loss, policy_loss = 0.0, 0.0
            for at in self.cells:
                state, weight, of_action = batch["state"][at].double(), weights[i][at], []
                for b in range(a.n_actions):
                    net, onehot = self.advantages[i], th.eye(a.n_actions, dtype=th.double)[b]
                    hidden = net.first(th.cat([state, onehot])).relu()
                    of_action.append(net.out(net.hidden(hidden).relu())[0])
                cql = th.log(sum(th.exp(of_action[b]) for b in avail[at, i]))
                for b in avail[at, i]:
                    cql = cql - mu[i][at][b].exp() * of_action[b]
                    log_pi, gain = policies[i][at][b], of_action[b].detach()
                    kl = log_pi - mu[i][at][b]
                    policy_loss = policy_loss + weight * log_pi.exp() * (alpha * kl - gain)
                error = of_action[action[at, i]] - e[at].detach()
                e_loss = e_loss + weight * (error**2 + a.cql_coeff * cql)
            if not self.fitted:
                cases.descend(self.others[i].parameters(), others_loss, self.lr)
            cases.descend(self.values[i].parameters(), nu_loss, self.lr)
            cases.descend(self.advantages[i].parameters(), e_loss, self.lr)
            cases.descend(self.agents[i].parameters(), policy_loss, self.lr)
            policies[i] = self.log_policy(self.agents, i)
            for key, loss in zip(losses, (nu_loss, e_loss, policy_loss, others_loss)):
                losses[key].append(loss.item())
        return losses | {"data_loss": [data_loss.item()]}


@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("rnn_ns", {}),
        ("mlp_ns", {"kl_coef": 0.5, "ending": "mean"}),
        ("mlp_ns", {"data_policies": "fitted", "use_ratio": False}),
        ("rnn_ns", {"data_policies": "fitted", "ending": "mean"}),
    ],
)
def test_losses_and_steps_are_those_of_the_loops(monkeypatch, agent, settings):
    learner, logger, args = make_alberdice(agent=agent, **settings)
    if fitted := learner.needs_behaviour:
        sizes = args.state_shape, args.n_agents, args.n_actions, 8
        learner.fitted = AutoregressivePolicy(*sizes)
        nn.init.normal_(learner.fitted.out.weight, std=0.3)
    batch = cases.random_batch(LENGTHS, args, terminated=[False, True, False, True, True], pad=2)
    cases.descend_plainly(learner, 0.05)
    literal, start = Literal(learner, batch, 0.05), copy.deepcopy(learner)
    seen = {"resample": [], "between": []}

    def spy(name):
        real = getattr(alberdice_learner, name)

        def call(*inputs):
            out = real(*inputs)
            seen[name].append((inputs, out))
            return out

        monkeypatch.setattr(alberdice_learner, name, call)

    spy("resample")
    spy("between")
    learner.train(batch, 50, 8)

    order, weights = cases.transitions_of(batch), []
    for _, (drawn, weight, _) in seen["resample"]:
        weights.append(dict.fromkeys(order, 0.0))
        weights[-1].update(zip([order[k] for k in drawn.tolist()], weight.double().tolist()))
    alpha = math.sqrt(2.0 * 0.5)  # half of the schedule, geometrically
    losses = literal.sweep(alpha, weights, [out for _, out in seen["between"]])

    assert logger.stats["alpha"] == [pytest.approx(alpha)]
    for key, values in losses.items():
        assert logger.stats[key] == [pytest.approx(sum(values) / len(values), rel=1e-4)], key
    for name in ("values", "advantages", "others", "data_policies", "agent"):
        if fitted and name in ("others", "data_policies"):
            continue
        expected = getattr(literal, "agents" if name == "agent" else name)
        found, old = learner.networks[name], start.networks[name]
        cases.assert_close_weights(found, expected, 2e-5)
        assert max((p - q).abs().max() for p, q in zip(found.parameters(), old.parameters())) > 1e-3

    # What the chances were made from. After the ends of 1, 3 and 9 transitions: 8, 6 and no steps.
    for ((ratio, n_still), _), expected in zip(seen["resample"], literal.ratios, strict=True):
        assert n_still == len(literal.still_rows()) == 8 + 6
        assert ratio.tolist() == pytest.approx([expected[at] for at in order], rel=1e-4)
    assert logger.stats["still_share"] == [pytest.approx(14 / (len(order) + 14))]
    for (states, n_absorbing), _ in seen["between"]:
        assert n_absorbing == 7 + 5
        assert states.shape == (len(order) + 2 + 1, args.state_shape + 1)
        assert states[-1].tolist() == [0.0] * args.state_shape + [1.0]
        assert (states[:-1, -1] == 0).all()
        ends = sorted([batch["state"][1, 1].tolist(), batch["state"][3, 3].tolist()])
        assert sorted(states[len(order) : -1, :-1].tolist()) == ends


def test_there_is_nothing_fitted_to_begin_with_unless_the_key_says_so():
    with pytest.raises(ConfigError, match="data_policies=fitted"):
        cases.build("alberdice", init_from_behaviour=True)
    assert cases.build("alberdice", init_from_behaviour=True, data_policies="fitted")


def test_policies_start_near_uniform_and_so_do_those_of_the_data():
    learner, _, _ = cases.build("alberdice", hidden_dim=128)
    for agents in (learner.mac.agent.agents, learner.data_policies.agents):
        for network in agents:
            assert network.fc2.weight.abs().max() <= 1e-3
            assert network.fc1.weight.abs().max() > 1e-3
    assert not th.equal(*(agent.fc1.weight for agent in learner.mac.agent.agents[:2]))


# What it comes to on the matrix games


def play_matrix(map_name, quality) -> tuple[th.Tensor, float]:
    """Policies `[2, A]` and expected return after a short run on about 180 episodes of a game."""
    copies = 15 if map_name == "xor" else 2
    policies, expected, _ = cases.train_on_game(
        "alberdice", map_name, quality, 400, copies, agent="mlp_ns", lr=0.002, nu_lr=0.002,
        data_lr=0.002, alpha_end=0.02,
    )  # fmt: skip
    return policies, expected


@pytest.mark.parametrize("quality", ["a", "b"])
def test_xor_is_solved(quality):
    (one, two), expected = play_matrix("xor", quality)
    assert expected > 0.9  # some mass stays on what is not drawn, while alpha is 0.02
    assert max(one[0] * two[1], one[1] * two[0]) > 0.9  # one of the two conventions, no mixture


def test_m_ne_depends_on_where_alpha_starts():
    """From imbalanced data alpha = 5 at first locks the frequent A in: 5, where 20 could be had."""
    assert play_matrix("m_ne", "imbalanced")[1] == pytest.approx(5, abs=0.2)
