"""Behaviour cloning: its loss by loops, and what it converges to."""

import copy
import math

import cases
import numpy as np
import pytest
import torch as th


@pytest.mark.parametrize("agent", ["rnn", "mlp_ns"])
def test_loss_and_step_are_those_of_the_loops(agent):
    learner, logger, args = cases.build("bc", agent=agent)
    batch = cases.random_batch(cases.LENGTHS, args, pad=2)
    cases.descend_plainly(learner, 0.2)
    twin = copy.deepcopy(learner.mac.agent).double()
    networks = twin.agents if agent.endswith("_ns") else [twin] * 3
    total, count = 0.0, 0
    for i in range(3):
        outputs = cases.play_agent(networks[i], batch, args, i)
        for e, t in cases.transitions_of(batch):
            log_pi = cases.log_softmax_loop(outputs[e, t], batch["avail_actions"][e, t, i])
            total, count = total - log_pi[batch["actions"][e, t, i, 0]], count + 1
    loss = total / count
    gradients = th.autograd.grad(loss, list(twin.parameters()), retain_graph=True)
    learner.train(batch, 0, 8)
    assert logger.stats["loss"] == [pytest.approx(loss.item(), rel=1e-5)]
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert logger.stats["grad_norm"] == [pytest.approx(norm, rel=1e-4)]
    cases.descend(twin.parameters(), loss, 0.2)
    cases.assert_close_weights(learner.mac.agent, twin, 1e-6)


def test_it_converges_to_the_frequencies_of_the_data():
    args = cases.make_args("bc", agent="mlp_ns", obs_last_action=False, obs_agent_id=False, lr=0.02)
    batch = cases.random_batch([1] * 60, args)
    batch["obs"][:] = 1.0
    batch["avail_actions"][:] = 1
    batch["avail_actions"][:, :, 2, 3] = 0
    batch["actions"][:, :, 2] %= 3
    learner, _ = cases.make_learner(args)
    for k in range(250):
        learner.train(batch, k, 8)
    learner.mac.init_hidden(60)
    probs = learner.mac.forward(batch, 0)[0].numpy()
    for i in range(3):
        counts = np.bincount(batch["actions"][:, 0, i, 0].numpy(), minlength=4) / 60
        assert np.abs(probs[i] - counts).max() < 2e-3
