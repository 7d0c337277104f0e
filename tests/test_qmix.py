"""QMIX: loss by loops, and monotone mixing."""

import copy

import cases
import pytest
import torch as th


def mix(mixer, qs, state):
    """The mixer of one state by the definition: qs list of scalars."""
    w1 = mixer.hyper_w1(state).abs().view(mixer.n_agents, mixer.embed_dim)
    hidden = mixer.hyper_b1(state)
    for q, row in zip(qs, w1):
        hidden = hidden + q * row
    hidden = th.where(hidden > 0, hidden, hidden.exp() - 1)
    return (hidden * mixer.hyper_w2(state).abs()).sum() + mixer.hyper_b2(state)[0]


class Literal:
    """The TD loss of mixed values by loops, and what a penalty is made of, in float64."""

    def __init__(self, learner, batch, args):
        self.batch, self.cells, self.learner = batch, cases.transitions_of(batch), learner
        nets = {name: copy.deepcopy(net).double() for name, net in learner.networks.items()}
        self.mixer, self.state = nets["mixer"], batch["state"].double()
        self.parameters = [*nets["agent"].parameters(), *self.mixer.parameters()]
        self.q = [cases.play_agent(nets["agent"], batch, args, i) for i in range(3)]
        target_q = [cases.play_agent(nets["target_agent"], batch, args, i) for i in range(3)]
        values = {}
        for e, t in self.cells:
            chosen = []
            for i in range(3):  # the online network chooses, the target network values
                q = self.q[i][e, t + 1].detach()
                best = max(self.possible(e, t + 1, i), key=lambda a, q=q: float(q[a]))
                chosen.append(target_q[i][e, t + 1][best])
            values[e, t] = mix(nets["target_mixer"], chosen, self.state[e, t + 1]).detach()
        self.targets = cases.td_lambda_loop(batch, values, args.gamma, args.td_lambda)

    def possible(self, e, t, i):
        return cases.available(self.batch, e, t, i)

    def played(self, e, t):
        return self.batch["actions"][e, t, :, 0].tolist()

    def q_tot(self, e, t, joint):
        return mix(self.mixer, [self.q[i][e, t][a] for i, a in enumerate(joint)], self.state[e, t])

    def td_loss(self):
        errors = [self.q_tot(e, t, self.played(e, t)) - self.targets[e, t] for e, t in self.cells]
        return sum(0.5 * error**2 for error in errors) / len(self.cells)

    def assert_trained_as(self, logger, loss, **logged):
        """`train` must find these losses and go one step down the first."""
        cases.descend_plainly(self.learner, 0.02)
        cases.descend(self.parameters, loss, 0.02)
        self.learner.train(self.batch, 0, 8)
        mean = sum(self.targets.values()) / len(self.targets)
        for key, value in {"loss": loss, "target_mean": mean, **logged}.items():
            assert logger.stats[key] == [pytest.approx(value.item(), rel=1e-4)], key
        found = [*self.learner.mac.parameters(), *self.learner.mixer.parameters()]
        for p, q in zip(found, self.parameters, strict=True):
            assert th.allclose(p.double(), q, atol=1e-5)


@pytest.mark.parametrize("td_lambda", [0.0, 0.6, 1.0])
def test_loss_and_step_are_those_of_the_loops(td_lambda):
    learner, logger, args = cases.build("qmix", td_lambda=td_lambda)
    literal = Literal(learner, cases.random_batch(cases.LENGTHS, args, pad=2), args)
    literal.assert_trained_as(logger, literal.td_loss())


def test_the_total_rises_with_every_agents_value():
    learner, _, args = cases.build("qmix")
    qs, states = 3 * th.randn(200, 3), th.randn(200, args.state_shape)
    base = learner.mixer(qs, states)
    assert base.shape == (200,)
    raised = [learner.mixer(qs + 0.5 * th.eye(3)[i], states) - base for i in range(3)]
    assert (th.stack(raised) >= 0).all()
    assert (th.stack(raised) > 1e-4).float().mean() > 0.9
    for k in range(5):
        expected = mix(learner.mixer, list(qs[k]), states[k])
        assert base[k].item() == pytest.approx(expected.item(), abs=1e-5)


def test_many_joint_actions_mix_as_one_at_a_time():
    learner, _, args = cases.build("qmix")
    qs, states = 3 * th.randn(6, 7, 3), th.randn(6, args.state_shape)
    found = learner.mixer.weights(states).mix_many(qs)
    assert found.shape == (6, 7)
    rows = [[mix(learner.mixer, q, s) for q in row] for row, s in zip(qs, states)]
    expected = th.stack([th.stack(row) for row in rows])
    assert th.allclose(found, expected, atol=1e-5)
    weight, parameters = th.randn(6, 7), list(learner.mixer.parameters())
    ours, theirs = (th.autograd.grad((weight * x).sum(), parameters) for x in (found, expected))
    assert all(th.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(ours, theirs))


def test_a_mixing_network_of_another_width_is_not_taken_over():
    learner, _, _ = cases.build("qmix")
    same, _, _ = cases.build("qmix")
    wider, _, _ = cases.build("qmix", mixing_embed_dim=learner.args.mixing_embed_dim + 1)
    assert learner.take_over(wider.state_dict()["networks"]) == learner.take_over({}) == []
    assert learner.take_over(same.state_dict()["networks"]) == ["mixer"]
    for mixer in (learner.mixer, learner.target_mixer):
        cases.assert_close_weights(mixer, same.mixer, atol=0)
