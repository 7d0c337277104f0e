"""Agents: whole episodes at once equal one step after the other, and keep to themselves."""

from types import SimpleNamespace

import pytest
import torch as th
from cases import random_batch

from inspo.components.packed import PackedEpisodes
from inspo.modules.agents import REGISTRY
from inspo.modules.agents.non_shared import NonSharedAgents

LENGTHS = [5, 1, 7, 3]
ARGS = SimpleNamespace(
    n_agents=3, n_actions=4, hidden_dim=8, state_shape=5, obs_shape=4, episode_limit=9
)


def step_by_step(agent, inputs, filled):
    """[B, T, n, A] by `forward`, all episodes together, as a runner plays them."""
    b, steps, n, _ = inputs.shape
    hidden = agent.init_hidden().expand(b * n, -1)
    outputs = []
    for t in range(steps):
        out, hidden = agent(inputs[:, t].flatten(0, 1), hidden)
        outputs.append(out.view(b, n, -1))
    return th.stack(outputs, dim=1) * filled[..., None]


@pytest.mark.parametrize("name", list(REGISTRY))
def test_unroll_is_forward_step_by_step(name):
    batch = random_batch(LENGTHS, ARGS, pad=2)
    th.manual_seed(0)
    agent = REGISTRY[name](4, ARGS)
    packed = PackedEpisodes(batch["filled"])
    found = agent.unroll(packed.pack(batch["obs"]), packed)
    expected = step_by_step(agent, batch["obs"], batch["filled"])
    assert th.allclose(packed.unpack(found), expected, atol=1e-6)
    assert found.std() > 0.01


@pytest.mark.parametrize("name", [name for name in REGISTRY if name.endswith("_ns")])
def test_each_agent_has_its_own_network(name):
    batch = random_batch(LENGTHS, ARGS)
    agent = REGISTRY[name](4, ARGS)
    assert isinstance(agent, NonSharedAgents)
    packed = PackedEpisodes(batch["filled"])
    rows = packed.pack(batch["obs"])
    whole = agent.unroll(rows, packed)
    for i in range(3):
        alone = agent.unroll_agent(i, rows[:, i], packed)
        assert th.allclose(alone, whole[:, i], atol=1e-6)
        agent.zero_grad(set_to_none=True)
        alone.square().sum().backward()
        touched = {int(k.split(".")[1]) for k, p in agent.named_parameters() if p.grad is not None}
        assert touched == {i}


@pytest.mark.parametrize("name", [name for name in REGISTRY if not name.endswith("_ns")])
def test_a_shared_agent_treats_all_agents_alike(name):
    batch = random_batch(LENGTHS, ARGS)
    agent = REGISTRY[name](4, ARGS)
    packed = PackedEpisodes(batch["filled"])
    rows = packed.pack(batch["obs"])
    turned = agent.unroll(rows[:, [2, 0, 1]], packed)
    assert th.allclose(turned, agent.unroll(rows, packed)[:, [2, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in REGISTRY if name.startswith("rnn")])
def test_a_recurrent_agent_remembers_its_own_past_alone(name):
    batch = random_batch([6, 6], ARGS)
    agent = REGISTRY[name](4, ARGS)
    packed = PackedEpisodes(batch["filled"])

    def play(obs):
        return packed.unpack(agent.unroll(packed.pack(obs), packed))

    before = play(batch["obs"])
    changed = batch["obs"].clone()
    changed[0, 2, 1] += 1.0  # episode 0, step 2, agent 1
    moved = (play(changed) - before).abs().sum(-1) > 1e-7  # [B, T, n]
    expected = th.zeros_like(moved)
    expected[0, 2:, 1] = True
    assert th.equal(moved, expected)
