"""AlberDICE's learner against a literal version: loops over episodes, steps, agents and actions."""

import copy
import math

import numpy as np
import pytest
import torch as th
from cases import (
    descend_plainly,
    log_softmax_loop,
    make_args,
    make_learner,
    play_agent,
    random_batch,
    transitions_of,
)

from components.episode_batch import EpisodeBatch
from components.packed import PackedEpisodes
from learners import alberdice_learner
from learners.alberdice_learner import (
    AbsorbingTransitions,
    absorbing_rows,
    between,
    gradient_penalty,
    others_ratio,
    resample,
)
from modules.autoregressive import AutoregressivePolicy
from modules.critics import StateActionCritic
from modules.mlp import mlp
from offline.behaviour import Behaviour
from offline.games import joint_actions

LENGTHS = [4, 1, 6, 3, 9]  # 1 and 3 are those of the episodes that end
PAYOFFS = {
    "xor": [[0.0, 1.0], [1.0, -2.0]],
    "m_ne": [[5.0, -20.0, -20.0], [-20.0, 10.0, -20.0], [-20.0, -20.0, 20.0]],
}


def make_alberdice(**overrides):
    defaults = {"gamma": 0.9, "alpha_start": 2.0, "alpha_end": 0.5, "ratio_max": 1.5}
    args = make_args("alberdice", **(defaults | overrides))
    th.manual_seed(0)
    learner, logger = make_learner(args)
    others = AutoregressivePolicy(args.state_shape, args.n_agents, args.n_actions, 8)
    with th.no_grad():  # a net that has been fitted, and policies that are not uniform
        for p in (*others.parameters(), *learner.mac.parameters()):
            p.add_(0.3 * th.randn(p.shape))
    learner.start_from(Behaviour(learner.mac.agent.state_dict(), others, None, None, {}))
    return learner, logger, args


# The pure functions


def test_absorbing_rows_by_loop():
    args = make_args("alberdice")
    for pad in (0, 3):
        batch = random_batch(LENGTHS, args, terminated=[True, False, True, True, True], pad=pad)
        packed = PackedEpisodes(batch["filled"])
        ended = packed.pack(batch["terminated"]).squeeze(-1)[packed.transitions].float()
        # 9 - 4, none, 9 - 6, 9 - 3, and one at least for the episode as long as the limit
        assert absorbing_rows(packed, ended, args.episode_limit).item() == 5 + 0 + 3 + 6 + 1


def test_ratio_by_hand():
    log_pi = th.log(th.tensor([[0.5, 0.2, 0.4], [0.5, 0.9, 0.9]]))
    log_mu_others = th.log(th.tensor([0.1, 0.01]))
    found = others_ratio(log_pi, log_mu_others, 1, 30.0)
    assert found.tolist() == pytest.approx([0.5 * 0.4 / 0.1, 30.0])
    assert others_ratio(log_pi, log_mu_others, 1, 100.0)[1].item() == pytest.approx(45.0)
    hopeless = others_ratio(th.tensor([[-300.0, -1e10]]), th.tensor([-0.1]), 0, 100.0)
    assert 0 < hopeless.item() < 1e-29


def test_resampling_counts_in_proportion_to_the_ratio():
    th.manual_seed(0)
    ratio, n_absorbing = th.tensor([0.1, 2.0, 0.4, 1.5, 0.0001]), th.tensor(6.0)
    total, parts = th.zeros(5), set()
    for _ in range(4000):
        rows, weight, absorbing = resample(ratio, n_absorbing)
        assert absorbing.item() == pytest.approx(6 / 10.0001)
        assert weight.sum().item() + absorbing.item() == pytest.approx(1)
        assert len(set(rows.tolist())) == len(rows)
        parts |= {round(x, 3) for x in (weight / weight.sum()).tolist()}
        total[rows] += weight
    assert parts <= {0.2, 0.4, 0.6, 0.8, 1.0}  # whole draws out of five
    assert th.allclose(total / 4000, ratio / 10.0001, atol=0.005)
    _, weight, absorbing = resample(ratio, th.tensor(0.0))
    assert (weight.sum().item(), absorbing.item()) == (pytest.approx(1), 0)


def test_points_between_pairs_lie_on_their_lines():
    th.manual_seed(0)
    states = th.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the last one is absorbing
    points = th.cat([between(states, th.tensor(6.0)) for _ in range(4000)])
    assert points.shape == (4000, 2)
    assert (points >= 0).all() and (points.sum(-1) <= 1 + 1e-6).all()
    # six of eight rows are absorbing: the mean of both coordinates, and how often both ends are
    assert th.allclose(points.mean(0), th.tensor([1 / 8, 6 / 8]), atol=0.02)
    both = (points == states[2]).all(-1).float().mean().item()
    assert both == pytest.approx(36 / 64, abs=0.03)
    assert between(states, th.tensor(0.0))[0, 1] == 0  # without absorbing rows it is not drawn


def test_the_gradient_penalty_of_a_linear_map_is_its_squared_norm():
    network = th.nn.Linear(3, 1)
    penalty = gradient_penalty(network, th.randn(5, 3))
    assert penalty.item() == pytest.approx(network.weight.square().sum().item())
    penalty.backward()
    assert th.allclose(network.weight.grad, 2 * network.weight)


def test_gradient_penalty_by_differences():
    th.manual_seed(0)
    network, points = mlp(3, 8, 1).double(), th.randn(6, 3, dtype=th.double)
    expected = 0.0
    with th.no_grad():
        for x in points:
            for k in range(3):
                step = 1e-6 * th.eye(3, dtype=th.double)[k]
                expected += ((network(x + step) - network(x - step)) / 2e-6).item() ** 2 / 6
    assert gradient_penalty(network, points.clone()).item() == pytest.approx(expected, rel=1e-5)


def test_the_critic_of_state_and_action_is_a_network_on_both():
    th.manual_seed(0)
    critic, plain = StateActionCritic(5, 4, 8), mlp(9, 8, 1)
    layers = (critic.first, critic.hidden, critic.out)
    for mine, theirs in zip(layers, (plain[0], plain[2], plain[4])):
        theirs.load_state_dict(mine.state_dict())
    states = th.randn(7, 5)
    found = critic(states)
    for m in range(7):
        for a in range(4):
            onehot = th.eye(4)[a]
            expected = plain(th.cat([states[m], onehot])).item()
            assert found[m, a].item() == pytest.approx(expected, abs=1e-5)


def test_others_kl_by_loop():
    """Two agents: exact. Three: over every draw of the predecessors, in the mean."""
    for n in (2, 3):
        th.manual_seed(n)
        others = AutoregressivePolicy(5, n, 3, 8)
        with th.no_grad():
            for p in others.parameters():
                p.add_(0.5 * th.randn(p.shape))
        avail = th.ones(1, n, 3, dtype=th.int)
        avail[0, n - 1, 1] = 0
        log_mu = th.randn(1, n, 3).masked_fill(avail == 0, -1e10).log_softmax(-1)
        log_pi = (2 * th.randn(1, n, 3)).masked_fill(avail == 0, -1e10).log_softmax(-1)
        state = th.randn(1, 5)
        for i in range(n):
            own, expected = 2 * (i == 0), 0.0  # an available action of agent i
            for joint in np.ndindex(*[3] * n):
                if joint[i] != own or not all(avail[0, j, joint[j]] for j in range(n)):
                    continue
                actions = th.tensor([joint])
                p = math.prod(log_pi[0, j, joint[j]].exp().item() for j in range(n) if j != i)
                log_p = sum(log_pi[0, j, joint[j]].item() for j in range(n) if j != i)
                expected += p * (log_p - others(i, state, log_mu, avail, actions).item())
            many = 1 if n == 2 else 20000
            rows = [x.expand(many, *x.shape[1:]) for x in (state, log_mu, avail)]
            data = th.full((many, n), own)
            found = others.others_kl(i, *rows, data, log_pi.expand(many, n, 3))
            assert (data == own).all()  # the caller's actions are left alone
            tolerance = 1e-5 if n == 2 else 0.03
            assert found.mean().item() == pytest.approx(expected, abs=tolerance)


# One whole call of train, literally


class Literal:
    """One call on one batch with loops, in double precision, on copies of the networks.

    Chances are taken from the learner: weights of the draws, points of the penalty and the KL of
    the others, one of each for every agent in turn; they have tests of their own above.
    """

    def __init__(self, learner, batch, lr):
        self.args, self.batch, self.lr = learner.args, batch, lr
        self.cells = transitions_of(batch)
        self.agents = copy.deepcopy(learner.mac.agent.agents).double()
        self.values = copy.deepcopy(learner.values).double()
        self.advantages = copy.deepcopy(learner.advantages).double()

    def descend(self, network, loss):
        parameters = list(network.parameters())
        gradients = th.autograd.grad(loss, parameters, allow_unused=True)
        with th.no_grad():
            for p, g in zip(parameters, gradients):
                p -= self.lr * (0.0 if g is None else g)

    def log_policy(self, i):
        """(e, t) -> log pi_i `[A]`."""
        outputs = play_agent(self.agents[i], self.batch, self.args, i)
        avail = self.batch["avail_actions"]
        return {at: log_softmax_loop(out, avail[at][i]) for at, out in outputs.items()}

    def value(self, i, at):
        """nu_i of a step, or of the absorbing state if `at` is None."""
        state = th.zeros(self.args.state_shape + 1, dtype=th.double)
        if at is None:
            state[-1] = 1.0
        else:
            state[:-1] = self.batch["state"][at].double()
        return self.values[i](state)[0]

    def rows(self):
        """Every row that begins a transition: a cell, or None for one of the absorbing state."""
        rows = list(self.cells)
        for e in range(self.batch.batch_size):
            length = int(self.batch["filled"][e].sum()) - 1
            if self.batch["terminated"][e, length - 1, 0]:
                t = length
                rows.append(None)
                while t + 1 < self.args.episode_limit:
                    rows.append(None)
                    t += 1
        return rows

    def ratio(self, i, at):
        product = 1.0
        for j in range(self.args.n_agents):
            if j != i:
                product *= self.policies[j][at][self.batch["actions"][at][j, 0]].exp().item()
        product /= math.exp(self.batch["behaviour_log_prob_others"][at][i].item())
        return min(product, self.args.ratio_max)

    def sweep(self, alpha, weights, absorbing_weights, points, others_kl):
        """weights[i] and others_kl[i]: cell -> number. Returns the losses of each agent."""
        a, batch = self.args, self.batch
        losses = {"nu_loss": [], "e_loss": [], "policy_loss": []}
        self.policies = {j: self.log_policy(j) for j in range(a.n_agents)}
        for i in range(a.n_agents):
            rows = self.rows()
            n, e = len(rows), {}
            for at in self.cells:
                ended = bool(batch["terminated"][at][0])
                after = self.value(i, None if ended else (at[0], at[1] + 1))
                r = batch["reward"][at][0].double()
                e[at] = r - alpha * others_kl[i][at] + a.gamma * after - self.value(i, at)
            still = a.gamma * self.value(i, None) - self.value(i, None)
            mean_ratio = sum(1.0 if at is None else self.ratio(i, at) for at in rows) / n
            inside = absorbing_weights[i] * th.exp(still / alpha)
            for at in self.cells:
                inside = inside + weights[i][at] * th.exp(e[at] / alpha)
            initial = sum(self.value(i, at) for at in rows) / n
            slopes = 0.0
            for x in points[i]:
                x = x.double().detach().requires_grad_()
                (slope,) = th.autograd.grad(self.values[i](x)[0], x, create_graph=True)
                slopes = slopes + (slope**2).sum() / len(points[i])
            nu_loss = alpha * th.log(mean_ratio * inside) + (1 - a.gamma) * initial
            nu_loss = nu_loss + a.nu_grad_penalty_coeff * slopes

            e_loss, policy_loss = 0.0, 0.0
            log_pi = self.log_policy(i)
            for at in self.cells:
                state, weight = batch["state"][at].double(), weights[i][at]
                of_action = []
                for b in range(a.n_actions):
                    onehot = th.eye(a.n_actions, dtype=th.double)[b]
                    x = th.cat([state, onehot])
                    net = self.advantages[i]
                    out = net.out(net.hidden(net.first(x).relu()).relu())
                    of_action.append(out[0])
                possible = [b for b in range(a.n_actions) if batch["avail_actions"][at][i, b]]
                log_mu = batch["behaviour_log_probs"][at][i].double()
                cql = th.log(sum(th.exp(of_action[b]) for b in possible))
                cql = cql - sum(log_mu[b].exp() * of_action[b] for b in possible)
                error = of_action[batch["actions"][at][i, 0]] - e[at].detach()
                e_loss = e_loss + weight * (error**2 + a.cql_coeff * cql)
                for b in possible:
                    kl = log_pi[at][b] - log_mu[b]
                    gain = of_action[b].detach()
                    policy_loss = policy_loss + weight * log_pi[at][b].exp() * (alpha * kl - gain)
            self.descend(self.values[i], nu_loss)
            self.descend(self.advantages[i], e_loss)
            self.descend(self.agents[i], policy_loss)
            self.policies[i] = self.log_policy(i)
            for key, loss in zip(losses, (nu_loss, e_loss, policy_loss)):
                losses[key].append(loss.item())
        return losses


@pytest.mark.parametrize("agent", ["rnn_ns", "mlp_ns"])
def test_losses_and_steps_are_those_of_the_loops(monkeypatch, agent):
    learner, logger, args = make_alberdice(agent=agent)
    batch = random_batch(LENGTHS, args, pad=2)
    descend_plainly(learner, 0.05)
    literal = Literal(learner, batch, 0.05)
    start = copy.deepcopy(learner.networks)
    seen = {"resample": [], "between": [], "others_kl": []}

    def spy(place, name):
        real = getattr(place, name)

        def call(*inputs):
            out = real(*inputs)
            kept = [x.clone() if isinstance(x, th.Tensor) else x for x in inputs]
            seen[name].append((kept, out))
            return out

        monkeypatch.setattr(place, name, call)

    spy(alberdice_learner, "resample")
    spy(alberdice_learner, "between")
    spy(learner.others, "others_kl")
    learner.train(batch, 50, 8)

    packed = PackedEpisodes(batch["filled"])
    order = [divmod(k, batch.max_seq_length) for k in packed.index[packed.transitions].tolist()]
    weights, absorbing = [], []
    for _, (drawn, weight, share) in seen["resample"]:
        weights.append(dict.fromkeys(order, 0.0))
        weights[-1].update(zip([order[k] for k in drawn.tolist()], weight.double().tolist()))
        absorbing.append(share.double().item())
    points = [out for _, out in seen["between"]]
    others_kl = [dict(zip(order, out.double().tolist())) for _, out in seen["others_kl"]]
    alpha = math.sqrt(2.0 * 0.5)  # half of the schedule, geometrically
    losses = literal.sweep(alpha, weights, absorbing, points, others_kl)

    assert logger.stats["alpha"] == [pytest.approx(alpha)]
    for key, values in losses.items():
        assert logger.stats[key] == [pytest.approx(sum(values) / 3, rel=1e-4)], key
    pairs = (
        (learner.values, literal.values, start["values"]),
        (learner.advantages, literal.advantages, start["advantages"]),
        (learner.mac.agent.agents, literal.agents, start["agent"].agents),
    )
    for found, expected, before in pairs:
        moved = False
        for p, q, old in zip(
            found.parameters(), expected.parameters(), before.parameters(), strict=True
        ):
            assert th.allclose(p.double(), q, atol=2e-5)
            moved |= bool((p - old).abs().max() > 1e-3)
        assert moved

    # What the chances were made from: the ratio with the policies of the moment, and the counts.
    n_rows = len(literal.rows())
    count = n_rows - len(order)
    assert count == 8 + 6
    for i, ((ratio, n_absorbing), _) in enumerate(seen["resample"]):
        assert n_absorbing.item() == count
        fresh = Literal(learner, batch, 0.0)  # new policies of the agents before i, old of the rest
        fresh.agents = copy.deepcopy(start["agent"].agents).double()
        for j in range(i):
            fresh.agents[j] = copy.deepcopy(learner.mac.agent.agents[j]).double()
        fresh.policies = {j: fresh.log_policy(j) for j in range(3)}
        expected = [fresh.ratio(i, at) for at in order]
        assert ratio.tolist() == pytest.approx(expected, rel=1e-4)
        log_pi = seen["others_kl"][i][0][-1]
        told = [[fresh.policies[j][at].tolist() for j in range(3)] for at in order]
        assert th.allclose(log_pi.exp(), th.tensor(told).exp(), atol=1e-4)
    assert logger.stats["absorbing_share"] == [pytest.approx(count / n_rows)]


def test_the_absorbing_state_is_a_flag_and_ended_episodes_lead_to_it():
    learner, _, args = make_alberdice()
    batch = random_batch(LENGTHS, args)
    data = AbsorbingTransitions(batch, learner.mac, args.episode_limit)
    assert data.points.shape == (sum(LENGTHS) + 5 + 1, args.state_shape + 1)
    assert data.points[-1].tolist() == [0.0] * args.state_shape + [1.0]
    assert (data.points[:-1, -1] == 0).all()
    absorbed = data.next == len(data.points) - 1
    assert th.equal(absorbed, data.terminated > 0)
    assert absorbed.sum() == 2
    assert th.equal(data.next[~absorbed], data.then[~absorbed])


def test_padding_and_the_terminal_observation_of_ended_episodes_change_nothing():
    outcomes = []
    for change in (None, "pad", "terminal"):
        learner, logger, args = make_alberdice()
        batch = random_batch(LENGTHS, args, pad=4 if change == "pad" else 0)
        if change == "terminal":
            batch["state"][1, LENGTHS[1]] = 77.0
        th.manual_seed(1)
        learner.train(batch, 10, 8)
        outcomes.append((logger.stats, [p.clone() for p in learner.values.parameters()]))
    for stats, parameters in outcomes[1:]:
        for key, value in outcomes[0][0].items():
            assert stats[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
        for p, q in zip(parameters, outcomes[0][1]):
            assert th.allclose(p, q, atol=1e-5)


def test_an_agent_without_a_choice_learns_nothing_and_gives_no_mass_away():
    learner, logger, args = make_alberdice(agent="mlp_ns", lr=0.01, nu_lr=0.01)
    batch = random_batch([5, 7], args)
    batch["avail_actions"][:, :, 2] = th.tensor([0, 1, 0, 0])
    batch["actions"][:, :, 2] = 1
    batch["behaviour_log_probs"][:, :, 2] = th.tensor([-1e10, 0.0, -1e10, -1e10])
    before = [p.clone() for p in learner.mac.agent_parameters(2)]
    for k in range(5):
        learner.train(batch, k, 8)
    for p, old in zip(learner.mac.agent_parameters(2), before):
        assert th.equal(p, old)
    learner.mac.init_hidden(2)
    probs = learner.mac.forward(batch, 0)
    assert (probs * (batch["avail_actions"][:, 0] == 0)).sum() == 0
    assert all(math.isfinite(x) for values in logger.stats.values() for x in values)


def test_policies_start_near_uniform():
    args = make_args("alberdice", hidden_dim=128)
    th.manual_seed(0)
    learner, _ = make_learner(args)
    for network in learner.mac.agent.agents:
        assert network.fc2.weight.abs().max() <= 1e-3
        assert network.fc1.weight.abs().max() > 1e-3


# What it comes to on the matrix games


class ExactOthers(AutoregressivePolicy):
    """mu(a_j | a_i) of two agents from the shares of the joint actions `[A, A]`."""

    def __init__(self, shares):
        super().__init__(1, 2, len(shares), 4)
        self.shares = shares

    def log_policies(self, i, state, log_mu, avail, actions):
        given = self.shares if i == 0 else self.shares.T  # [a_i][a_j]
        rows = given[actions[:, i]]
        rows = rows / rows.sum(-1, keepdim=True)
        return rows.clamp(min=1e-10).log().unsqueeze(1).expand(-1, 2, -1)


def play_matrix(map_name, quality, updates=400, **settings) -> tuple[th.Tensor, float]:
    """Joint policy `[A, A]` and expected return after a short run on a game's whole dataset."""
    payoff = th.tensor(PAYOFFS[map_name])
    n_actions = len(payoff)
    joint = th.from_numpy(joint_actions(map_name, quality, np.random.default_rng(0)))[:180, 0]
    shares = th.zeros_like(payoff)
    shares.index_put_(tuple(joint.T), th.tensor(1.0 / len(joint)), accumulate=True)
    args = make_args(
        "alberdice", agent="mlp_ns", obs_last_action=False, hidden_dim=32, critic_hidden_dim=32,
        lr=0.002, nu_lr=0.002, t_max=updates, log_interval=10**9, **settings,
    )  # fmt: skip
    vars(args).update(n_agents=2, n_actions=n_actions, state_shape=1, obs_shape=1, episode_limit=1)
    th.manual_seed(0)
    learner, _ = make_learner(args)
    learner.start_from(Behaviour({}, ExactOthers(shares), None, None, {}))

    def twice(row):  # the step and the terminal observation, `[E, 2, ...]`
        return th.stack([row, row], dim=1)

    e = len(joint)
    first, second = shares.sum(1).log(), shares.sum(0).log()
    of_others = [(shares / shares.sum(1, keepdim=True)), (shares / shares.sum(0))]
    log_others = th.stack([of[tuple(joint.T)].log() for of in of_others], dim=-1)
    batch = EpisodeBatch(
        {
            "state": th.ones(e, 2, 1),
            "obs": th.ones(e, 2, 2, 1),
            "actions": twice(joint.unsqueeze(-1)),
            "avail_actions": th.ones(e, 2, 2, n_actions, dtype=th.int),
            "reward": twice(payoff[tuple(joint.T)].unsqueeze(-1)),
            "terminated": th.tensor([1, 0], dtype=th.uint8).view(1, 2, 1).expand(e, 2, 1),
            "filled": th.ones(e, 2, 1, dtype=th.long),
            "behaviour_log_probs": th.stack([first, second]).expand(e, 2, 2, n_actions),
            "behaviour_log_prob_others": twice(log_others),
        }
    )
    for k in range(updates):
        learner.train(batch, k, 8)
    learner.mac.init_hidden(e)
    one, two = learner.mac.forward(batch, 0)[0]
    policy = th.outer(one, two)
    return policy, (policy * payoff).sum().item()


@pytest.mark.parametrize("quality", ["a", "b", "c"])
def test_xor_is_solved_from_all_its_datasets(quality):
    policy, expected = play_matrix("xor", quality)
    assert expected > 0.95
    assert max(policy[0, 1], policy[1, 0]) > 0.95  # one of the two conventions, no mixture


def test_m_ne_depends_on_where_alpha_starts():
    """20 from balanced data. From imbalanced ones alpha = 5 at first locks the frequent A in."""
    assert play_matrix("m_ne", "balanced")[1] == pytest.approx(20, abs=0.2)
    assert play_matrix("m_ne", "imbalanced")[1] == pytest.approx(5, abs=0.2)
