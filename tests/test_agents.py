"""Agents keep to themselves: their order and their pasts (see test_controllers.py as well)."""

from types import SimpleNamespace

import pytest
import torch as th
from cases import LENGTHS, random_batch

from inspo.components.packed import PackedEpisodes
from inspo.modules.agents import REGISTRY

ARGS = SimpleNamespace(
    n_agents=3, n_actions=4, hidden_dim=8, state_shape=5, obs_shape=4, episode_limit=9
)


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
