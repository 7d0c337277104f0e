"""Behaviour cloning: its loss by loops, and what it converges to."""

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

LENGTHS = [4, 1, 6, 3]


@pytest.mark.parametrize("agent", ["rnn", "rnn_ns", "mlp", "mlp_ns"])
def test_loss_and_step_are_those_of_the_loops(agent):
    args = make_args("bc", agent=agent, grad_norm_clip=1e9)
    batch = random_batch(LENGTHS, args, pad=2)
    th.manual_seed(0)
    learner, logger = make_learner(args)
    descend_plainly(learner, 0.2)
    twin = copy.deepcopy(learner.mac.agent).double()
    networks = twin.agents if agent.endswith("_ns") else [twin] * 3
    total, count = 0.0, 0
    for i in range(3):
        outputs = play_agent(networks[i], batch, args, i)
        for e, t in transitions_of(batch):
            log_pi = log_softmax_loop(outputs[e, t], batch["avail_actions"][e, t, i])
            total, count = total - log_pi[batch["actions"][e, t, i, 0]], count + 1
    loss = total / count
    gradients = th.autograd.grad(loss, list(twin.parameters()))
    learner.train(batch, 0, 8)
    assert logger.stats["loss"] == [pytest.approx(loss.item(), rel=1e-5)]
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert logger.stats["grad_norm"] == [pytest.approx(norm, rel=1e-4)]
    for p, old, g in zip(learner.mac.parameters(), twin.parameters(), gradients):
        assert th.allclose(p.double(), old - 0.2 * g, atol=1e-6)


def test_it_converges_to_the_frequencies_of_the_data():
    args = make_args("bc", agent="mlp_ns", obs_last_action=False, obs_agent_id=False, lr=0.02)
    batch = random_batch([1] * 60, args)
    batch["obs"][:] = 1.0
    batch["avail_actions"][:] = 1
    batch["avail_actions"][:, :, 2, 3] = 0
    batch["actions"][:, :, 2] %= 3
    learner, _ = make_learner(args)
    for k in range(250):
        learner.train(batch, k, 8)
    learner.mac.init_hidden(60)
    probs = learner.mac.forward(batch, 0)[0].numpy()
    for i in range(3):
        counts = np.bincount(batch["actions"][:, 0, i, 0].numpy(), minlength=4) / 60
        assert np.abs(probs[i] - counts).max() < 2e-3


def test_learning_rate_schedules():
    for decay, expected in (("cosine", [1.0, 0.5, 0.0]), ("none", [1.0, 1.0, 1.0])):
        args = make_args("bc", lr_decay=decay, lr=0.004, t_max=100)
        batch = random_batch(LENGTHS, args)
        learner, _ = make_learner(args)
        rates = []
        for t_env in (0, 50, 100):
            learner.train(batch, t_env, 8)
            rates.append(learner.optimisers["policy"].param_groups[0]["lr"])
        assert rates == pytest.approx([0.004 * x for x in expected], abs=1e-8)
