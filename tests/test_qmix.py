"""QMIX: loss by loops, monotone mixing, and when the targets are copied."""

import copy

import pytest
import torch as th
from cases import (
    descend_plainly,
    make_args,
    make_learner,
    play_agent,
    random_batch,
    td_lambda_loop,
    transitions_of,
)

LENGTHS = [4, 1, 6, 3]


def make_qmix(**overrides):
    args = make_args("qmix", "matrix", grad_norm_clip=1e9, gamma=0.9, **overrides)
    th.manual_seed(0)
    learner, logger = make_learner(args)
    with th.no_grad():  # the targets must differ from the networks, or a mix-up would not show
        for network in (learner.target_mac.agent, learner.target_mixer):
            for p in network.parameters():
                p.add_(0.3 * th.randn(p.shape))
    return learner, logger, args


def mix(mixer, qs, state):
    """The mixer of one state by the definition: qs list of scalars."""
    w1 = mixer.hyper_w1(state).abs().view(mixer.n_agents, mixer.embed_dim)
    hidden = mixer.hyper_b1(state)
    for q, row in zip(qs, w1):
        hidden = hidden + q * row
    hidden = th.where(hidden > 0, hidden, hidden.exp() - 1)
    return (hidden * mixer.hyper_w2(state).abs()).sum() + mixer.hyper_b2(state)[0]


@pytest.mark.parametrize("td_lambda", [0.0, 0.6, 1.0])
def test_loss_and_step_are_those_of_the_loops(td_lambda):
    learner, logger, args = make_qmix(td_lambda=td_lambda)
    batch = random_batch(LENGTHS, args, pad=2)
    descend_plainly(learner, 0.02)
    agent, mixer = (copy.deepcopy(n).double() for n in (learner.mac.agent, learner.mixer))
    target_agent = copy.deepcopy(learner.target_mac.agent).double()
    target_mixer = copy.deepcopy(learner.target_mixer).double()
    q = [play_agent(agent, batch, args, i) for i in range(3)]
    target_q = [play_agent(target_agent, batch, args, i) for i in range(3)]
    state, avail = batch["state"].double(), batch["avail_actions"]
    next_values, cells = {}, transitions_of(batch)
    for e, t in cells:
        chosen = []
        for i in range(3):  # the online network chooses, the target network values
            possible = [a for a in range(4) if avail[e, t + 1, i, a]]
            best = max(possible, key=lambda a, i=i, e=e, t=t: float(q[i][e, t + 1][a].detach()))
            chosen.append(target_q[i][e, t + 1][best])
        next_values[e, t] = mix(target_mixer, chosen, state[e, t + 1]).detach()
    targets = td_lambda_loop(batch, next_values, 0.9, td_lambda)
    total = 0.0
    for e, t in cells:
        taken = [q[i][e, t][batch["actions"][e, t, i, 0]] for i in range(3)]
        total = total + 0.5 * (mix(mixer, taken, state[e, t]) - targets[e, t]) ** 2
    loss = total / len(cells)
    parameters = [*agent.parameters(), *mixer.parameters()]
    gradients = th.autograd.grad(loss, parameters)
    learner.train(batch, 0, 8)
    assert logger.stats["loss"] == [pytest.approx(loss.item(), rel=1e-5)]
    mean = sum(float(y) for y in targets.values()) / len(targets)
    assert logger.stats["target_mean"] == [pytest.approx(mean, rel=1e-4)]
    found = [*learner.mac.parameters(), *learner.mixer.parameters()]
    for p, old, g in zip(found, parameters, gradients, strict=True):
        assert th.allclose(p.double(), old - 0.02 * g, atol=1e-5)


def test_the_total_rises_with_every_agents_value():
    learner, _, args = make_qmix()
    th.manual_seed(1)
    qs, states = 3 * th.randn(200, 3), th.randn(200, args.state_shape)
    base = learner.mixer(qs, states)
    assert base.shape == (200,)
    rises = []
    for i in range(3):
        raised = qs.clone()
        raised[:, i] += 0.5
        rises.append(learner.mixer(raised, states) - base)
    assert (th.stack(rises) >= 0).all()
    assert (th.stack(rises) > 1e-4).float().mean() > 0.9
    for k in range(5):
        expected = mix(learner.mixer, list(qs[k]), states[k])
        assert base[k].item() == pytest.approx(expected.item(), abs=1e-5)


def test_many_joint_actions_mix_as_one_at_a_time():
    learner, _, args = make_qmix()
    th.manual_seed(1)
    qs, states = 3 * th.randn(6, 7, 3), th.randn(6, args.state_shape)
    found = learner.mixer.weights(states).mix_many(qs)
    assert found.shape == (6, 7)
    expected = th.stack([th.stack([mix(learner.mixer, q, s) for q in rows])
                         for rows, s in zip(qs, states)])  # fmt: skip
    assert th.allclose(found, expected, atol=1e-5)
    parameters = list(learner.mixer.parameters())
    weight = th.randn(6, 7)
    ours = th.autograd.grad((weight * found).sum(), parameters)
    theirs = th.autograd.grad((weight * expected).sum(), parameters)
    assert all(th.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(ours, theirs))


def test_targets_are_copied_every_target_update_interval_episodes():
    learner, _, args = make_qmix(target_update_interval=20)
    batch = random_batch(LENGTHS, args)

    def same():
        pairs = (
            (learner.target_mac.agent, learner.mac.agent),
            (learner.target_mixer, learner.mixer),
        )
        return all(th.equal(p, q) for a, b in pairs for p, q in zip(a.parameters(), b.parameters()))

    copied = []
    for episode in (8, 16, 24, 32, 40, 48):
        learner.train(batch, 0, episode)
        copied.append(same())
    assert copied == [False, False, True, False, False, True]  # at 24, then 24 + 20 at the earliest


def test_state_is_saved_whole(tmp_path):
    learner, _, args = make_qmix(target_update_interval=20)
    batch = random_batch(LENGTHS, args)
    for episode in (8, 16, 24):
        learner.train(batch, 0, episode)
    learner.save_models(tmp_path)
    twin, _, _ = make_qmix(target_update_interval=20)
    twin.load_models(tmp_path)
    for part in (learner, twin):
        for episode in (32, 40, 48):
            part.train(batch, 0, episode)
    for name, network in learner.networks.items():
        other = twin.networks[name].state_dict()
        assert all(th.equal(v, other[k]) for k, v in network.state_dict().items())
