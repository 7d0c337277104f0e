"""ComaDICE: conjugates, losses by loops, and where the two gradients of its values lead."""

import copy
import math

import cases
import pytest
import torch as th
from test_omiga import mixing_loop

from inspo.learners.comadice_learner import conjugate, ratio

DIVERGENCES = ("soft_chi2", "chi2", "kl")


def f(r: float, divergence: str) -> float:
    """The divergences by their definitions."""
    entropic = r * math.log(r) - r + 1 if r > 0 else 1.0
    if divergence == "kl" or (divergence == "soft_chi2" and r < 1):
        return entropic
    return (r - 1) ** 2 / 2


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_conjugate_is_the_largest_difference_and_the_ratio_its_slope(divergence):
    grid = [k / 1000 for k in range(40001)]
    for x in (-3.0, -1.5, -0.4, 0.0, 0.7, 3.0):
        best = max(grid, key=lambda r, x=x: x * r - f(r, divergence))
        point = th.tensor(x, dtype=th.float64, requires_grad=True)
        value = conjugate(point, divergence)
        assert value.item() == pytest.approx(x * best - f(best, divergence), abs=1e-5)
        (slope,) = th.autograd.grad(value, point)
        assert slope.item() == pytest.approx(best, abs=2e-3)
        assert ratio(point, divergence).item() == pytest.approx(slope.item(), rel=1e-9)
    far = conjugate(th.tensor(1e4), divergence)
    assert far.isfinite() and ratio(th.tensor(1e4), divergence).isfinite()


def slope_of(r, x, divergence):
    h = 1e-6
    return (r(x + h, divergence) - r(x - h, divergence)) / (2 * h)


def r_plain(x: float, divergence: str) -> float:
    if divergence == "kl" or (divergence == "soft_chi2" and x < 0):
        return math.exp(x)
    return max(1 + x, 0.0)


class Loops:
    """The losses in float64 from their definitions; those of V as (loss, its gradient in x)."""

    def __init__(self, nets, batch, args):
        self.nets, self.batch, self.args = nets, batch, args
        self.cells, self.n = cases.transitions_of(batch), args.n_agents
        values = copy.copy(args)
        values.obs_last_action, values.obs_agent_id = False, True
        self.seen = lambda e, t, i: cases.inputs_loop(batch, values, e, t, i).double()

    def action(self, e, t, i):
        return int(self.batch["actions"][e, t, i, 0])

    def reward(self, e, t):
        if self.args.rewards == "reward":
            return self.batch["reward"][e, t, 0].double()
        later = [u for d, u in self.cells if d == e and u >= t]
        return sum(self.batch["reward"][e, u, 0].double() for u in later)

    def q_loss(self):
        loss = 0.0
        for e, t in self.cells:
            state = self.batch["state"][e].double()
            w, b = mixing_loop(self.nets["mixer"], state[t])
            next_w, next_b = mixing_loop(self.nets["target_mixer"], state[t + 1])
            total, following = b, next_b
            for i in range(self.n):
                total = total + w[i] * self.nets["q"](self.seen(e, t, i))[self.action(e, t, i)]
                v = self.nets["target_v"](self.seen(e, t + 1, i))[0]
                following = following + next_w[i] * v
            y = self.reward(e, t)
            if not self.batch["terminated"][e, t, 0]:
                y = y + self.args.gamma * following.detach()
            loss = loss + (total - y) ** 2
        return loss / len(self.cells)

    def excess(self, e, t, prefix=""):
        """(w_i (Q_i - V_i) of every agent, w_i V_i, V_i), with V's gradient alone."""
        w, _ = mixing_loop(self.nets[prefix + "mixer"], self.batch["state"][e, t].double())
        found = []
        for i in range(self.n):
            q = self.nets[prefix + "q"](self.seen(e, t, i))[self.action(e, t, i)].detach()
            v = self.nets["v"](self.seen(e, t, i))[0]
            found.append((w[i].detach() * (q - v), w[i].detach() * v, v))
        difference, of_data, v = (list(part) for part in zip(*found))
        if self.args.on_total:
            return [sum(difference)], [sum(of_data)], v
        return difference, of_data, v

    def value_loss(self):
        """(the loss, one with the same gradient)."""
        a, shift = self.args, self.nets.get("multipliers", {"v": 0.0})["v"]
        loss = surrogate = starts = 0.0
        begins, rows = sum(t == 0 for _, t in self.cells), 0
        for e, t in self.cells:
            differences, of_data, v = self.excess(e, t)
            if t == 0:
                initial = sum(of_data) if a.on_total else sum(v) / self.n
                starts = starts + initial / begins
            for difference, mine in zip(differences, of_data):
                rows += 1
                x = (difference - shift) / a.alpha
                plain = float(x.detach() if isinstance(x, th.Tensor) else x)
                r = r_plain(plain, a.divergence)
                dual = plain * r - f(r, a.divergence)
                held = mine if a.value_loss == "flow" else 0.0
                loss = loss + a.alpha * dual + held
                if a.value_loss == "released":
                    slope = plain * slope_of(r_plain, plain, a.divergence)
                    surrogate = surrogate + a.alpha * slope * x - r * shift
                else:
                    surrogate = surrogate + a.alpha * r * x + held
        loss, surrogate = loss / rows, surrogate / rows
        if a.value_loss != "flow":
            linear = (1 - a.gamma) * starts + shift
            loss, surrogate = loss + linear, surrogate + linear
        return loss, surrogate

    def policy_loss(self):
        """(the loss, 1 - the mean ratio)."""
        a = self.args
        agents = getattr(self.nets["agent"], "agents", [self.nets["agent"]] * self.n)
        outputs = [cases.play_agent(agents[i], self.batch, a, i) for i in range(self.n)]
        shift = self.nets["multipliers"]["policy"].item() if "multipliers" in self.nets else 0.0
        loss, ratios = 0.0, []
        for e, t in self.cells:
            excess, *_ = self.excess(e, t, "target_")
            each = [r_plain((float(x.detach()) - shift) / a.alpha, a.divergence) for x in excess]
            ratios += each
            weight = sum(min(r, a.largest_weight) for r in each)
            for i in range(self.n):
                avail = self.batch["avail_actions"][e, t, i]
                log_pi = cases.log_softmax_loop(outputs[i][e, t], avail)[self.action(e, t, i)]
                loss = loss - weight * log_pi / (self.n * len(self.cells))
        return loss, 1 - sum(ratios) / len(ratios)


COMBINATIONS = [
    {"agent": "rnn"},
    {"divergence": "kl", "on_total": True, "agent": "mlp_ns", "largest_weight": 1.2},
    {"value_loss": "initial", "divergence": "chi2", "alpha": 0.1},
    {"value_loss": "initial", "on_total": True},
    {"value_loss": "released", "rewards": "to_go", "alpha": 0.3},
]


@pytest.mark.parametrize("settings", COMBINATIONS)
def test_losses_and_steps_are_those_of_the_loops(settings):
    learner, logger, args = cases.build("comadice", **({"agent": "mlp"} | settings))
    if args.value_loss != "flow":
        with th.no_grad():
            learner.multipliers["v"] += 0.2
            learner.multipliers["policy"] -= 0.1
    batch = cases.random_batch(cases.LENGTHS, args, pad=2)
    cases.descend_plainly(learner, 0.02)
    nets = {name: copy.deepcopy(net).double() for name, net in learner.networks.items()}
    loops = Loops(nets, batch, args)
    q_loss, (v_loss, surrogate) = loops.q_loss(), loops.value_loss()
    policy_loss, rest = loops.policy_loss()
    expected = {"q": q_loss, "v": v_loss, "policy": policy_loss}
    learner.train(batch, 0, 8)
    for name, loss in expected.items():
        assert logger.stats[f"{name}_loss"] == [pytest.approx(loss.item(), rel=1e-4)], name
    v_parameters = [*nets["v"].parameters()]
    if args.value_loss != "flow":
        v_parameters.append(nets["multipliers"]["v"])
        with th.no_grad():
            nets["multipliers"]["policy"] -= 0.02 * rest
    cases.descend([*nets["q"].parameters(), *nets["mixer"].parameters()], q_loss, 0.02)
    cases.descend(v_parameters, surrogate, 0.02)
    cases.descend(nets["agent"].parameters(), policy_loss, 0.02)
    for name in ("q", "mixer", "v", "agent", "multipliers"):
        if name in nets:
            cases.assert_close_weights(learner.networks[name], nets[name])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_ratio_is_normalised_in_every_state_and_for_kl_v_is_omigas(divergence):
    """E_mu r(w (Q - V) / alpha) = 1 where Q and w are held still."""
    actions = [(0, 1), (1, 0), (0, 0), (1, 0)]
    batch = cases.game_batch(th.tensor(actions), th.zeros(2, 2))
    learner, _ = cases.game_learner(
        "comadice", 2, alpha=0.5, lr=0.03, target_tau=0.0, divergence=divergence
    )
    seen = th.cat([th.ones(2, 1), th.eye(2)], dim=1)
    learner.optimisers["q"].param_groups[0]["lr"] = 0.0
    with th.no_grad():
        learner.q[-1].bias.copy_(th.tensor([0.3, 1.5]))
        w = learner.mixer.weights(batch["state"][:1, 0]).w[0].double()
        q = learner.q(seen).double()
    for k in range(150):
        if k == 110:
            learner.optimisers["v"].param_groups[0]["lr"] = 0.002
        learner.train(batch, k, 8)
    v = learner.v(seen).detach().squeeze(-1)
    for i in range(2):
        xs = [float(w[i] * (q[i][joint[i]] - v[i]) / 0.5) for joint in actions]
        assert sum(r_plain(x, divergence) for x in xs) / 4 == pytest.approx(1, abs=0.01)
        if divergence == "kl":
            mean = sum(math.exp(w[i] * q[i][joint[i]] / 0.5) for joint in actions) / 4
            assert v[i].item() == pytest.approx(0.5 / w[i].item() * math.log(mean), abs=0.02)


def test_the_released_gradient_has_the_other_sign_below_zero():
    """At x = -1 the right one is -r = -e^-1, and V rises; the released one x r' in its place."""
    slopes = []
    for how in ("initial", "released"):
        learner, *_ = cases.build("comadice", value_loss=how, alpha=1.0)
        v = th.zeros((), requires_grad=True)
        loss = learner._initial_loss(th.zeros(()), (-1 - v).view(1, 1))
        slopes += [slope.item() for slope in th.autograd.grad(loss, v)]
    assert slopes == pytest.approx([-math.exp(-1), math.exp(-1)])


def test_the_loss_as_printed_has_no_least_value():
    """V up by c / w and lambda down by c: every x stays, and the loss falls all the same."""
    learner, _, args = cases.build("comadice", value_loss="initial")
    w, c = 0.4, 3.0
    q, v = th.tensor([[0.3], [1.0]]), th.tensor([[0.1], [0.2]])
    before = learner._initial_loss(v.mean(), w * (q - v))
    with th.no_grad():
        learner.multipliers["v"] -= c
    v = v + c / w
    after = learner._initial_loss(v.mean(), w * (q - v))
    fall = c * (1 - (1 - args.gamma) / w)
    assert (before - after).item() == pytest.approx(fall, rel=1e-5) and fall > 0


FAST = {"lr": 0.01, "target_tau": 0.2, "alpha": 0.1, "critic_hidden_dim": 32}


def test_weights_that_add_up_do_not_coordinate_xor_a():
    """What one agent's advantage adds to AB the other's adds to BA: both weigh the same."""
    probabilities, value, _ = cases.train_on_game("comadice", "xor", "a", 150, **FAST)
    assert th.allclose(probabilities, th.full((2, 2), 0.5), atol=0.05)
    assert value == pytest.approx(0, abs=0.2)


def test_a_linear_fit_takes_b_for_better_on_xor_b():
    probabilities, _, _ = cases.train_on_game(
        "comadice", "xor", "b", 150, **(FAST | {"largest_weight": 50.0})
    )
    assert probabilities[:, 1].min() > 0.45  # 1 / 3 in the data
