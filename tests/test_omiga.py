"""OMIGA: its losses by loops, what values and policies converge to, and the mended clip."""

import copy
import math

import cases
import pytest
import torch as th

from inspo.learners.omiga_learner import tangent_exp, value_loss

PARTS = ("agent", "q", "v", "mixer")
TARGETS = ("target_q", "target_v", "target_mixer")


def mixing_loop(mixer, state) -> tuple[list, th.Tensor]:
    """(w, b) of one state by the definition."""
    layer = mixer.hidden[0]
    hidden = [max(x, 0 * x) for x in layer.weight @ state + layer.bias]
    w = [abs(sum(k * h for k, h in zip(row, hidden)) + b) for row, b in
         zip(mixer.w.weight, mixer.w.bias)]  # fmt: skip
    b = sum(k * h for k, h in zip(mixer.b.weight[0], hidden)) + mixer.b.bias[0]
    return w, b


def losses_by_loops(nets, batch, args) -> dict[str, th.Tensor]:
    """The three losses in float64 from their definitions, over every transition and agent."""
    values = copy.copy(args)
    values.obs_last_action, values.obs_agent_id = False, True  # what Q and V see
    n, c, cells = args.n_agents, args.weight_clip, cases.transitions_of(batch)
    agents = getattr(nets["agent"], "agents", [nets["agent"]] * n)
    outputs = [cases.play_agent(agents[i], batch, args, i) for i in range(n)]
    policy, q_loss, zs, wvs = 0.0, 0.0, [], []
    for e, t in cells:
        state = batch["state"][e].double()
        w, b = mixing_loop(nets["mixer"], state[t])
        target_w, _ = mixing_loop(nets["target_mixer"], state[t])
        next_w, next_b = mixing_loop(nets["target_mixer"], state[t + 1])
        q_tot, next_v = b, next_b
        for i in range(n):
            action = int(batch["actions"][e, t, i, 0])
            seen = cases.inputs_loop(batch, values, e, t, i).double()
            seen_next = cases.inputs_loop(batch, values, e, t + 1, i).double()
            q_tot = q_tot + w[i] * nets["q"](seen)[action]
            next_v = next_v + next_w[i] * nets["target_v"](seen_next)[0]
            v = nets["v"](seen)[0]
            scale = (target_w[i] / args.alpha).detach()
            z = scale * (nets["target_q"](seen)[action].detach() - v)
            zs.append(z)
            wvs.append(scale * v)
            log_pi = cases.log_softmax_loop(outputs[i][e, t], batch["avail_actions"][e, t, i])[
                action
            ]
            policy = policy - math.exp(min(float(z.detach()), c)) * log_pi
        y = batch["reward"][e, t, 0].double()
        if not batch["terminated"][e, t, 0]:
            y = y + args.gamma * next_v.detach()
        q_loss = q_loss + (q_tot - y) ** 2
    shift = max(-1.0, *(min(float(z.detach()), c) for z in zs))
    v_loss = 0.0
    for z, wv in zip(zs, wvs):
        if z > c:
            v_loss = v_loss + math.exp(c - shift) * (1 + z - c)
        else:
            v_loss = v_loss + th.exp(z - shift)
        v_loss = v_loss + math.exp(-shift) * wv
    count = len(cells)
    return {
        "policy": policy / (count * n),
        "q": q_loss / count,
        "v": v_loss / (count * n),
        "clipped": sum(float(z.detach()) > c for z in zs) / len(zs),
    }


@pytest.mark.parametrize(
    ("agent", "alpha", "weight_clip"), [("rnn", 1.0, 10.0), ("mlp_ns", 0.1, 0.5)]
)
def test_losses_and_steps_are_those_of_the_loops(agent, alpha, weight_clip):
    learner, logger, args = cases.build("omiga", agent=agent, alpha=alpha, weight_clip=weight_clip)
    batch = cases.random_batch(cases.LENGTHS, args, pad=2)
    cases.descend_plainly(learner, 0.02)
    before = {name: copy.deepcopy(net).double() for name, net in learner.networks.items()}
    expected = losses_by_loops(before, batch, args)
    learner.train(batch, 0, 8)
    for name in ("policy", "q", "v"):
        found = logger.stats[f"{name}_loss"]
        assert found == [pytest.approx(expected[name].item(), rel=1e-4)], name
    assert logger.stats["weight_clipped_share"] == [pytest.approx(expected["clipped"])]
    assert (expected["clipped"] > 0.05) == (weight_clip < 1)  # both branches are walked
    parts, nets = (
        th.nn.ModuleList(of[name] for name in PARTS) for of in (learner.networks, before)
    )
    cases.descend(nets.parameters(), expected["policy"] + expected["q"] + expected["v"], 0.02)
    cases.assert_close_weights(parts, nets)
    for name in TARGETS:
        new = learner.networks[name.removeprefix("target_")].state_dict()
        for key, old in before[name].state_dict().items():
            found = learner.networks[name].state_dict()[key].double()
            target = (1 - args.target_tau) * old + args.target_tau * new[key].double()
            assert th.allclose(found, target, atol=1e-6)


def test_totals_rise_with_every_agents_value():
    learner, _, args = cases.build("omiga")
    values, states = 3 * th.randn(50, 3), th.randn(50, args.state_shape)
    base = learner.mixer(values, states)
    for i in range(3):
        raised = values.clone()
        raised[:, i] += 0.5
        assert (learner.mixer(raised, states) >= base).all()
    for k in range(5):
        w, b = mixing_loop(learner.mixer, states[k])
        total = sum(x * y for x, y in zip(w, values[k])) + b
        assert base[k].item() == pytest.approx(total.item(), abs=1e-5)


def test_beyond_the_bound_the_value_still_rises_towards_q():
    """Where z > 10 a clipped z leaves +w V / alpha alone, which moves V away from Q."""
    for z0 in (9.0, 10.5, 30.0, 400.0):
        v = th.zeros((), dtype=th.float64, requires_grad=True)
        value_loss(z0 - v, v, 10.0).backward()
        assert v.grad < -0.9  # steps go against it: up
        assert v.grad >= -1.0  # and at a bounded pace
    z = th.tensor([9.999999, 10.000001], dtype=th.float64, requires_grad=True)
    below, above = tangent_exp(z, 10.0, th.tensor(0.0))
    (slopes,) = th.autograd.grad(below + above, z)
    assert slopes[0].item() == pytest.approx(slopes[1].item(), rel=1e-5)  # no kink
    assert below.item() == pytest.approx(above.item(), rel=1e-5)  # no jump


def test_the_scale_of_the_value_loss_stays_in_range():
    z, wv = th.tensor([-3.0, -2.0]), th.tensor([0.5, 0.0])
    expected = math.e * (math.exp(-3) + 0.5 + math.exp(-2)) / 2  # z_max = max(-2, -1)
    assert value_loss(z, wv, 10.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.02, 1.0])  # at 0.02 z starts above the bound
def test_the_value_settles_at_its_stationary_point(alpha):
    """V_i = (alpha / w) log E_mu exp(w Q_i / alpha), Q and w held still."""
    actions = [(0, 1), (1, 0), (0, 0), (1, 0)]
    batch = cases.game_batch(th.tensor(actions), th.zeros(2, 2))
    learner, logger = cases.game_learner(
        "omiga", 2, alpha=alpha, gamma=0.9, lr=0.03, target_tau=0.0, log_interval=1
    )
    seen = th.cat([th.ones(2, 1), th.eye(2)], dim=1)
    with th.no_grad():
        learner.target_q[-1].bias.copy_(th.tensor([0.3, 1.5]))
        w = learner.target_mixer.weights(batch["state"][:1, 0]).w[0].double()
        q = learner.target_q(seen).double()
    for k in range(200):
        if k == 150:
            learner.optimisers["v"].param_groups[0]["lr"] = 0.002
        learner.train(batch, k, 8)
    v = learner.v(seen).detach().squeeze(-1)
    for i in range(2):
        mean = sum(math.exp(w[i] * q[i][joint[i]] / alpha) for joint in actions) / 4
        assert v[i].item() == pytest.approx(alpha / w[i].item() * math.log(mean), abs=5e-3)
    assert (logger.stats["weight_clipped_share"][0] > 0) == (alpha == 0.02)


@pytest.mark.parametrize("alpha", [0.2, 1e6])
def test_policies_on_xor_b(alpha):
    """Q_tot = a linear fit, exact on (b): Q_i(B) is worth 1 more than Q_i(A).

    So pi_i(B) = e^(1/alpha) / 3 / (2 / 3 + e^(1/alpha) / 3): (B, B), worth -2, as alpha falls, and
    behaviour cloning as it rises.
    """
    joint, payoff = cases.game_data("xor", "b")
    batch = cases.game_batch(joint, payoff)
    learner, _ = cases.game_learner(
        "omiga", 2, agent="mlp_ns", obs_agent_id=False, alpha=alpha, lr=0.03, target_tau=0.2,
        hidden_dim=16,
    )  # fmt: skip
    for k in range(200):
        if k == 160:
            for optimiser in learner.optimisers.values():
                optimiser.param_groups[0]["lr"] = 0.002
        learner.train(batch, k, 8)
    learner.mac.init_hidden(len(joint))
    probabilities = learner.mac.forward(batch, 0)[0]
    tilt = math.exp(1 / alpha)
    for pi in probabilities:
        assert pi[1].item() == pytest.approx(tilt / (2 + tilt), abs=0.02)
