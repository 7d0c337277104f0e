"""IQL, AWAC, TD3+BC and what lies between: losses by loops, and where they end on the games."""

import copy
import math

import cases
import pytest
import torch as th
from test_modules import dueling
from test_qmix import mix as mix_qmix

from inspo.learners.values_learner import expectile_loss, regression_weights, spread
from inspo.modules.critics import BLOCK, JointCritic
from inspo.utils.config import load_config
from inspo.utils.errors import ConfigError

RATE = 0.01


def joint_value(critic, state, joint):
    """Q(s, a_1, ..., a_n) by the definition: a network on the state and one-hot actions."""
    table = critic.actions.weight
    x = critic.state.weight @ state + critic.state.bias
    for i, a in enumerate(joint):
        x = x + table[i * critic.n_actions + a]
    x = (critic.hidden.weight @ x.clamp(min=0) + critic.hidden.bias).clamp(min=0)
    return critic.out.weight[0] @ x + critic.out.bias[0]


class Loops:
    """Values, targets and losses by the definitions, in float64, for every transition and agent."""

    def __init__(self, learner, batch, args, drawn):
        """drawn: (e, t) -> joint action of the policy in step t."""
        self.batch, self.args, self.drawn = batch, args, drawn
        self.nets = {k: copy.deepcopy(net).double() for k, net in learner.networks.items()}
        self.cells = cases.transitions_of(batch)
        self.state, self.obs = batch["state"].double(), batch["obs"].double()
        self.n, self.kind = args.n_agents, args.decomposition
        agents = getattr(self.nets["agent"], "agents", [self.nets["agent"]] * self.n)
        outputs = [cases.play_agent(agents[i], batch, args, i) for i in range(self.n)]
        self.log_pi = [
            {c: cases.log_softmax_loop(x, batch["avail_actions"][c[0], c[1], i])
             for c, x in of.items()}
            for i, of in enumerate(outputs)
        ]  # fmt: skip

    def played(self, e, t):
        return self.batch["actions"][e, t, :, 0].tolist()

    def q(self, critic, e, t, i):
        """Of agent i's actions, `[A]`."""
        return dueling(critic, self.state[e, t], self.obs[e, t, i], i)

    def smaller(self, e, t, i):
        return th.stack([self.q(c, e, t, i) for c in self.nets["target_critics"]]).amin(0).detach()

    def joint(self, name, e, t, actions):
        """The smaller of the critics' values of a joint action."""
        return min(joint_value(c, self.state[e, t], actions) for c in self.nets[name])

    def mix(self, name, values, e, t):
        if self.kind == "vdn":
            return sum(values)
        return mix_qmix(self.nets[name], values, self.state[e, t])

    def v(self, e, t, i=0):
        if self.kind == "central":
            return self.nets["value"](self.state[e, t])[0]
        return dueling(self.nets["value"], self.state[e, t], self.obs[e, t, i], i)[0]

    def expected(self, q, e, t, i):
        pi = self.log_pi[i][e, t].exp().detach()
        return sum(pi[a] * q[a] for a in range(self.args.n_actions))

    def following(self, e, t) -> list:
        """V of step t, a list of one value, or of each agent's if independent."""
        how = self.args.target
        if how == "sarsa" and (e, t) not in self.cells:
            how = "policy"
        if self.kind == "central":
            if how == "expectile":
                return [self.v(e, t).detach()]
            actions = self.drawn[e, t] if how == "policy" else self.played(e, t)
            return [self.joint("target_critics", e, t, actions).detach()]
        values = []
        for i in range(self.n):
            if how == "expectile":
                values.append(self.v(e, t, i).detach())
            elif how == "policy":
                values.append(self.expected(self.smaller(e, t, i), e, t, i))
            else:
                values.append(self.smaller(e, t, i)[self.played(e, t)[i]])
        if self.kind == "independent":
            return values
        return [self.mix("target_mixer", values, e, t).detach()]

    def targets(self) -> dict:
        """(e, t) -> a list of y."""
        values = {(e, t): self.following(e, t + 1) for e, t in self.cells}
        each = [
            cases.td_lambda_loop(
                self.batch, {c: v[k] for c, v in values.items()},
                self.args.gamma, self.args.td_lambda,
            )
            for k in range(len(values[self.cells[0]]))
        ]  # fmt: skip
        found = {c: [of[c] for of in each] for c in self.cells}
        if self.args.cap_targets:
            zeros = dict.fromkeys(self.cells, 0.0)
            best = max(cases.td_lambda_loop(self.batch, zeros, self.args.gamma, 1.0).values())
            found = {c: [y.clamp(max=best) for y in ys] for c, ys in found.items()}
        return found

    def totals(self, critic, e, t) -> list:
        joint = self.played(e, t)
        if self.kind == "central":
            return [joint_value(critic, self.state[e, t], joint)]
        values = [self.q(critic, e, t, i)[joint[i]] for i in range(self.n)]
        return values if self.kind == "independent" else [self.mix("mixer", values, e, t)]

    def critic_loss(self):
        targets = self.targets()
        losses, first = [], []
        for k, critic in enumerate(self.nets["critics"]):
            for c in self.cells:
                for total, y in zip(self.totals(critic, *c), targets[c], strict=True):
                    losses.append((total - y) ** 2)
                    first += [float(total.detach())] if k == 0 else []
        loss = sum(losses) / len(losses)
        if not self.args.value_normalisation:
            return loss
        mean = sum(first) / len(first)
        return loss / (sum(abs(x - mean) for x in first) / len(first)) ** 2

    def value_loss(self):
        losses = []
        for e, t in self.cells:
            joint = self.played(e, t)
            if self.kind == "central":
                pairs = [(self.joint("target_critics", e, t, joint).detach(), self.v(e, t))]
            else:
                pairs = [(self.smaller(e, t, i)[joint[i]], self.v(e, t, i)) for i in range(self.n)]
            for q, v in pairs:
                share = self.args.expectile if q >= v else 1 - self.args.expectile
                losses.append(share * (q - v) ** 2)
        return sum(losses) / len(losses)

    def own(self, e, t, i, target: bool):
        """q_i(b) of every action b, `[A]`."""
        joint, name = self.played(e, t), "target_critics" if target else "critics"
        if self.kind == "central":
            others = [[*joint[:i], b, *joint[i + 1 :]] for b in range(self.args.n_actions)]
            if target:
                return th.stack([self.joint(name, e, t, x) for x in others]).detach()
            first = self.nets["critics"][0]
            return th.stack([joint_value(first, self.state[e, t], x) for x in others]).detach()
        q = [
            self.smaller(e, t, j) if target else self.q(self.nets["critics"][0], e, t, j)
            for j in range(self.n)
        ]
        return self.beside(q, joint, q[i], e, t, i, target)

    def beside(self, q, joint, mine, e, t, i, target):
        """Totals in which agent i has each of the values `mine`."""
        if self.kind == "independent":
            return mine.detach()
        found = []
        for value in mine:
            values = [q[j][joint[j]] for j in range(self.n)]
            values[i] = value
            found.append(self.mix("target_mixer" if target else "mixer", values, e, t))
        return th.stack(found).detach()

    def advantage(self, e, t, i):
        joint = self.played(e, t)
        if self.args.target != "expectile":
            own = self.own(e, t, i, target=True)
            return own[joint[i]] - self.expected(own, e, t, i)
        if self.kind == "central":
            return (self.joint("target_critics", e, t, joint) - self.v(e, t)).detach()
        q = [self.smaller(e, t, j) for j in range(self.n)]
        mine = th.stack([q[i][joint[i]], self.v(e, t, i).detach()])
        own = self.beside(q, joint, mine, e, t, i, target=True)
        return own[0] - own[1]

    def policy_loss(self):
        a, losses, expected, sizes = self.args, [], [], []
        for e, t in self.cells:
            for i, action in enumerate(self.played(e, t)):
                log_pi = self.log_pi[i][e, t]
                weight = 1.0
                if a.extraction == "awr":
                    advantage = float(self.advantage(e, t, i))
                    weight = min(math.exp(a.inverse_temperature * advantage), a.largest_weight)
                losses.append(-weight * log_pi[action])
                if a.extraction == "brac":
                    own = self.own(e, t, i, target=False)
                    expected.append(sum(log_pi[b].exp() * own[b] for b in range(len(own))))
                    sizes.append(abs(float(own[action])))
        loss = sum(losses) / len(losses)
        if a.extraction != "brac":
            return loss
        return loss - a.alpha * len(sizes) / sum(sizes) * sum(expected) / len(expected)


COMBINATIONS = [
    ("iql", {"agent": "rnn"}),
    ("iql", {"decomposition": "vdn", "td_lambda": 0.7, "cap_targets": True}),
    ("iql", {"decomposition": "qmix", "inverse_temperature": 20.0, "largest_weight": 1.5}),
    ("iql", {"decomposition": "central", "expectile": 0.9, "value_normalisation": True}),
    ("awac", {"td_lambda": 0.5, "twin": False}),
    ("awac", {"decomposition": "qmix", "agent": "mlp_ns"}),
    ("awac", {"decomposition": "central", "target": "sarsa"}),
    ("td3bc", {"agent": "rnn"}),
    ("td3bc", {"decomposition": "qmix", "td_lambda": 0.5}),
    ("td3bc", {"decomposition": "independent", "target": "sarsa", "cap_targets": True}),
    ("td3bc", {"decomposition": "vdn", "target": "expectile"}),
    ("td3bc", {"extraction": "bc", "target": "sarsa", "decomposition": "vdn"}),
]  # fmt: skip


@pytest.mark.parametrize(("alg", "settings"), COMBINATIONS)
def test_losses_and_steps_are_those_of_the_loops(alg, settings):
    learner, logger, args = cases.build(alg, **({"agent": "mlp"} | settings))
    batch = cases.random_batch(cases.LENGTHS, args, pad=2)
    cases.descend_plainly(learner, RATE)
    before = {name: copy.deepcopy(net) for name, net in learner.networks.items()}
    cells = cases.transitions_of(batch)
    loops = Loops(learner, batch, args, {})
    # The policy's actions in the steps that transitions lead to, drawn as the learner draws them.
    rows = [of[e, t + 1].float() for e, t in cells for of in loops.log_pi]
    th.manual_seed(5)
    drawn = th.multinomial(th.stack(rows).exp(), 1).view(len(cells), args.n_agents)
    loops.drawn = {(e, t + 1): joint for (e, t), joint in zip(cells, drawn.tolist())}
    losses = {"critics": loops.critic_loss(), "policy": loops.policy_loss()}
    if args.target == "expectile":
        losses["value"] = loops.value_loss()
    th.manual_seed(5)
    learner.train(batch, 0, 8)
    for name, loss in losses.items():
        assert logger.stats[f"{name}_loss"] == [pytest.approx(loss.item(), rel=1e-4)], name
    parts = {"critics": ("critics", "mixer"), "policy": ("agent",), "value": ("value",)}
    for name, loss in losses.items():
        nets = [loops.nets[part] for part in parts[name] if part in loops.nets]
        cases.descend([p for net in nets for p in net.parameters()], loss, RATE)
        for part in parts[name]:
            if part in loops.nets:
                cases.assert_close_weights(learner.networks[part], loops.nets[part])
    for name in [name for name in before if name.startswith("target_")]:
        online = learner.networks[name.removeprefix("target_")]
        pairs = zip(learner.networks[name].parameters(), before[name].parameters())
        for (found, old), new in zip(pairs, online.parameters(), strict=True):
            assert th.allclose(found, (1 - args.target_tau) * old + args.target_tau * new)
    if args.inverse_temperature == 20:
        assert 0 < logger.stats["weight_clipped_share"][0] < 1


def test_the_policy_waits_for_the_critics():
    learner, _, args = cases.build("td3bc", agent="mlp", policy_delay=3)
    moved = []
    for _ in range(6):
        before = copy.deepcopy(learner.networks["agent"])
        learner.train(cases.random_batch(cases.LENGTHS, args), 0, 8)
        moved.append(not cases.same_weights(learner.networks["agent"], before))
    assert moved == [True, False, False, True, False, False]


def test_the_expectile_of_samples_is_where_its_loss_is_least():
    samples, grid = [0.0, 1.0, 1.0, 5.0], th.linspace(0, 5, 5001, dtype=th.float64)
    for expectile in (0.1, 0.5, 0.9):
        losses = sum(expectile_loss(x - grid, expectile) for x in samples)
        m = grid[losses.argmin()].item()
        above, below = (sum(max(sign * (x - m), 0) for x in samples) for sign in (1, -1))
        assert expectile * above == pytest.approx((1 - expectile) * below, abs=2e-3)


def test_weights_and_spread():
    advantage = th.tensor([-1.0, 0.0, 2.0])
    found = regression_weights(advantage, 3.0, 100.0).tolist()
    assert found == pytest.approx([math.exp(-3), 1.0, 100.0])
    assert spread(th.tensor([1.0, 3.0, 5.0, 7.0])).item() == pytest.approx(2.0)
    assert spread(th.tensor([4.0])).item() > 0  # something to divide by


def test_normalised_values_have_the_gradient_of_any_scale():
    """SVN: rewards a hundred times as large, and values with them, give the same loss."""
    values, targets = th.tensor([1.0, 2.0, 6.0]), th.tensor([2.0, 2.0, 3.0])
    learner, *_ = cases.build("iql", value_normalisation=True)
    losses = [learner._critic_loss([k * values], k * targets).item() for k in (1.0, 100.0)]
    assert losses[0] == pytest.approx(losses[1])


def test_targets_stay_below_the_best_return_of_all_data_so_far():
    learner, logger, args = cases.build("td3bc", decomposition="vdn", cap_targets=True, gamma=1.0)
    with th.no_grad():
        for critic in learner.target_critics:
            critic.advantage.bias += 1e3
    batch = cases.random_batch([3, 2], args, terminated=[False, False])
    batch["reward"][:] = 1.0
    learner.train(batch, 0, 8)
    assert logger.stats["target_mean"] == [pytest.approx(3.0)]
    batch["reward"][:] = 0.5  # a worse batch: the bound stays
    learner.train(batch, 10, 8)
    assert logger.stats["target_mean"][-1] == pytest.approx(3.0)


def test_a_joint_critic_in_blocks_is_the_network_on_one_hot_actions():
    th.manual_seed(0)
    critic = JointCritic(state_dim=3, n_agents=2, n_actions=4, hidden=6)
    state, actions = th.randn(BLOCK + 3, 3), th.randint(4, (BLOCK + 3, 2))
    own = critic.own_values(state, actions)
    assert own.shape == (BLOCK + 3, 2, 4) and not own.requires_grad
    values = critic(state, actions)
    for m in (0, BLOCK, BLOCK + 2):
        joint = actions[m].tolist()
        assert values[m].item() == pytest.approx(joint_value(critic, state[m], joint).item())
        for b in range(4):
            for i in range(2):
                other = [b if j == i else a for j, a in enumerate(joint)]
                expected = joint_value(critic, state[m], other).item()
                assert own[m, i, b].item() == pytest.approx(expected, abs=1e-5)


# Where it ends

FAST = {"lr": 0.01, "critic_lr": 0.01, "target_tau": 0.2, "critic_hidden_dim": 32}


def settled(alg, map_name, quality, updates=150, **overrides):
    probabilities, value, _ = cases.train_on_game(
        alg, map_name, quality, updates, **(FAST | overrides)
    )
    return probabilities, value


def test_independent_expectiles_take_the_best_partner_for_granted_on_xor_b():
    """A is worth 0 beside A and 1 beside B, and half of its rows are of each; B always 1. So its
    tau-expectile rises to 1 with tau; V of both actions lies below B's, and (B, B) wins."""
    probabilities, value = settled("iql", "xor", "b", inverse_temperature=30.0)
    assert probabilities[:, 1].min() > 0.95 and value < -1.8


def test_without_a_temperature_it_is_cloning():
    probabilities, _ = settled("iql", "xor", "b", inverse_temperature=0.0)
    assert th.allclose(probabilities[:, 1], th.full((2,), 1 / 3), atol=0.03)


def test_a_central_critic_and_policies_of_each_agent_do_not_coordinate_xor_a():
    """Both joint actions of the data are worth 1: nothing prefers one of them, and each agent
    clones its half of both."""
    probabilities, value = settled("iql", "xor", "a", decomposition="central")
    assert th.allclose(probabilities, th.full((2, 2), 0.5), atol=0.05)
    assert value == pytest.approx(0, abs=0.2)


def test_values_beside_cloning_find_the_best_joint_action_of_m_ne():
    """Of the others' actions in the data, C pays most with C, and each row says which one it is."""
    probabilities, _ = settled("td3bc", "m_ne", "balanced", alpha=50.0)
    assert probabilities[:, 2].min() > 0.9  # (C, C), worth 20


# What cannot be


@pytest.mark.parametrize(
    ("alg", "words", "why"),
    [
        ("qmix_cql", {"mixer": "central"}, "no agent can tell which of its own actions"),
        ("qmix_cql", {"raw_sample_actions": 0}, "too many to sum over"),
    ],
)
def test_a_combination_that_cannot_be_is_one_clear_error(alg, words, why):
    with pytest.raises(ConfigError, match=why):
        cases.make_learner(cases.make_args(alg, **words))


@pytest.mark.parametrize("expectile", ["0.0", "1.0", "-3"])
def test_an_expectile_lies_between_0_and_1(expectile):
    with pytest.raises(ConfigError, match="expectile: expected"):
        load_config(
            ["--config=iql", "--env-config=matrix_offline", "with", f"expectile={expectile}"]
        )
