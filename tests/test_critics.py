"""Critics shared by the agents against their definition."""

import copy

import torch as th

from inspo.modules.critics import BLOCK, DuelingCritic


def dueling(critic, state, obs, i: int) -> th.Tensor:
    """Q_i(s, o_i, .) `[A]` by the definition: one layer on (s, o_i, identity), one more, and for
    each action its advantage plus the value. state `[S]`, obs `[O]` of agent i."""
    identity = th.zeros(critic.n_agents, dtype=obs.dtype)
    identity[i] = 1
    x = th.cat([state, obs, identity])
    weight = th.cat([critic.state.weight, critic.own.weight], dim=1)
    x = (weight @ x + critic.state.bias).clamp(min=0)
    x = (critic.hidden.weight @ x + critic.hidden.bias).clamp(min=0)
    value = critic.value.weight[0] @ x + critic.value.bias[0]
    return th.stack([w @ x + b + value for w, b in zip(critic.advantage.weight,
                                                      critic.advantage.bias)])  # fmt: skip


def test_values_are_advantage_plus_value_of_state_observation_and_identity():
    th.manual_seed(0)
    critic = DuelingCritic(state_dim=5, obs_dim=4, n_agents=3, n_actions=6, hidden=7).double()
    state, obs = th.randn(8, 5).double(), th.randn(8, 3, 4).double()
    q = critic(state, obs)
    assert q.shape == (8, 3, 6)
    q.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in critic.parameters())
    for m in range(8):
        for i in range(3):
            assert th.allclose(q[m, i], dueling(critic, state[m], obs[m, i], i), atol=1e-12)


def test_agents_differ_by_their_identity_alone_where_they_see_the_same():
    th.manual_seed(0)
    critic = DuelingCritic(state_dim=2, obs_dim=3, n_agents=2, n_actions=4, hidden=8)
    state, obs = th.randn(5, 2), th.randn(5, 1, 3).expand(-1, 2, -1)
    assert not th.allclose(critic(state, obs)[:, 0], critic(state, obs)[:, 1])
    blind = copy.deepcopy(critic)
    with th.no_grad():
        blind.own.weight[:, -2:] = 0
    assert th.allclose(blind(state, obs)[:, 0], blind(state, obs)[:, 1], atol=1e-6)


def test_evaluation_in_blocks_is_the_forward_pass_without_a_way_back():
    th.manual_seed(0)
    critic = DuelingCritic(state_dim=2, obs_dim=3, n_agents=2, n_actions=4, hidden=8)
    for n_rows in (0, 1, 2 * BLOCK + 3):
        state, obs = th.randn(n_rows, 2), th.randn(n_rows, 2, 3)
        values = critic.evaluate(state, obs)
        th.testing.assert_close(values, critic(state, obs))
        assert not values.requires_grad
