"""The learner with tabular features and exact behaviour policies lands on the closed form.

Full batch, weights in place of drawn counts, no CQL term, no clip, critics first: what is left is
Algorithm 1 in small steps, whose fixed points are those of `tabular.in_sample`. Both start at mu,
with the first agent a little to one side, so that neither waits on a saddle. The residual says how
far the closed form's own update would still move the learner's policies.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from cases import MemoryLogger, make_args

from inspo.components.episode_batch import EpisodeBatch, build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.learners.inspo_learner import InSPOLearner
from inspo.tabular import in_sample, paper_games
from inspo.tabular.in_sample import Dataset

CALLS, LR, CRITIC_LR = 500, 0.03, 0.03


def log(p):
    return np.where(p > 0, np.log(np.where(p > 0, p, 1.0)), -1e10)


def twice(x, dtype=th.float32):
    """`[M, ...]` -> `[M, 2, ...]`: each row is an episode of one transition."""
    return th.as_tensor(np.stack([x, x], axis=1)).to(dtype)


def as_batch(data: Dataset) -> EpisodeBatch:
    """The rows of `data`, states one-hot, with the exact log mu of Eqs. 21 and 22."""
    assert np.ptp(data.weight) == 0
    mu = np.stack(data.behaviour(), axis=1)  # [S, n, A]
    states = np.stack([data.state, data.next_state], axis=1)  # [M, 2]
    onehot = np.eye(data.n_states)[states]
    others = np.stack([data.log_conditional(i) for i in range(data.n_agents)], axis=-1)
    return EpisodeBatch(
        {
            "state": th.as_tensor(onehot).float(),
            "obs": th.as_tensor(onehot[:, :, None].repeat(data.n_agents, axis=2)).float(),
            "actions": twice(data.action[..., None], th.long),
            "avail_actions": th.as_tensor(mu[states] > 0).int(),
            "reward": twice(data.reward[:, None]),
            "terminated": twice(data.done[:, None], th.uint8),
            "filled": th.ones(*states.shape, 1, dtype=th.long),
            "behaviour_log_probs": th.as_tensor(log(mu[states])).float(),
            "behaviour_log_prob_others": twice(others),
        }
    )


def start_at(agent, mu):
    """Solve the last layer so that the network plays `mu` `[S, A]` on one-hot states."""
    with th.no_grad():
        features = th.nn.Sequential(*list(agent.net)[:-1])(th.eye(len(mu))).double().numpy()
        features = np.concatenate([features, np.ones((len(mu), 1))], axis=1)
        weights = th.from_numpy(np.linalg.pinv(features) @ np.maximum(log(mu), -20))
        agent.net[-1].weight.copy_(weights[:-1].T)
        agent.net[-1].bias.copy_(weights[-1])


def learn(
    data: Dataset, alpha: float, beta=0.0, gamma=0.0, batch=None, calls=CALLS, lr=LR, **changes
):
    """The learner's policies after that many calls, a list of `[S, A]` in double precision."""
    settings = {
        "agent": "mlp_ns", "obs_last_action": False, "hidden_dim": 16, "critic_hidden_dim": 16,
        "resample": "weight", "agent_order": "fixed", "critic_minibatch": 0, "td_lambda": 0.0,
        "ratio": "geometric", "joint_kl_coef": 0.0, "cql_alpha": 0.0, "weight_clip": 1e9,
        "target_tau": 0.2, "critic_warmup": 0.2,
        "alpha": alpha, "beta": beta, "beta_hold": 2.0, "beta_end": 3.0, "gamma": gamma,
        "log_interval": 10**9, "t_max": calls,
    }  # fmt: skip
    args = make_args("inspo", **(settings | changes))
    sizes = {"n_agents": data.n_agents, "n_actions": max(data.n_actions)}
    sizes |= {"state_shape": data.n_states, "obs_shape": data.n_states}
    vars(args).update(sizes)
    th.manual_seed(0)
    scheme = build_scheme(sizes)
    mac = mac_REGISTRY[args.mac](scheme, {"agents": args.n_agents}, args)
    learner = InSPOLearner(mac, scheme, MemoryLogger(), args)
    mu, start, batch = data.behaviour(), beginning(data), batch or as_batch(data)
    for agent, policy in zip(mac.agent.agents, start):
        start_at(agent, policy)
    assert distance(policies_of(mac, mu), start) < 1e-4
    for call in range(calls):
        decay = min(1.0, 2 * (1 - call / calls))  # constant, then linearly to zero
        for name, optimiser in learner.optimisers.items():
            optimiser.param_groups[0]["lr"] = decay * (CRITIC_LR if "critic" in name else lr)
        learner.train(batch, call, call)
    return policies_of(mac, mu)


def policies_of(mac, mu):
    found = []
    for agent, support in zip(mac.agent.agents, mu):
        with th.no_grad():
            logits = agent.net(th.eye(len(support))).double()
        probs = logits.masked_fill(th.as_tensor(support) == 0, -1e10).softmax(-1).numpy()
        found.append(probs)
    return found


def beginning(data):
    """mu, with more of the later actions in agent 0's."""
    first, *others = data.behaviour()
    first = first * np.arange(1, first.shape[1] + 1)
    return [first / first.sum(-1, keepdims=True), *others]


def closed_form(data, alpha, beta, gamma=0.0, variant=in_sample.PAPER, blocks=None):
    return in_sample.iterate(
        data, alpha, beta, gamma=gamma, sweeps=500, order=list(range(data.n_agents)),
        initial=beginning(data), variant=variant, blocks=blocks,
    ).policies  # fmt: skip


def distance(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first, second))


def residual(data, policies, alpha, beta, gamma=0.0, variant=in_sample.PAPER):
    updated = [
        in_sample.update(data, policies, data.behaviour(), i, alpha, beta, gamma, variant)
        for i in range(data.n_agents)
    ]
    return distance(updated, policies)


@pytest.mark.parametrize(
    ("name", "quality", "alpha", "beta", "tolerance"),
    [
        ("xor", "b", 0.2, 0.1, 1e-3),
        ("xor", "c", 2.0, 0.0, 1e-3),
        ("m_ne", "balanced", 1.0, 2.0, 1e-4),
    ],
)
def test_matrix_games(name, quality, alpha, beta, tolerance):
    data = paper_games.dataset(name, quality)
    found = learn(data, alpha, beta)
    closed = closed_form(data, alpha, beta)
    assert distance(found, closed) < tolerance
    assert residual(data, found, alpha, beta) < tolerance


VARIANTS = {
    "geometric": {},
    "full": {"exponent": 1.0},
    "adaptive": {"exponent": 1.0, "share": 0.6},
}


def random_game(n_agents: int) -> Dataset:
    """A one-step game of two actions an agent, correlated data of all but some joint actions."""
    rng = np.random.default_rng(n_agents)
    action = rng.integers(2, size=(2**n_agents * 3, n_agents))
    copied = rng.random(len(action)) < 0.3
    action[copied, 1:] = action[copied, :1]
    payoff = rng.normal(size=(2,) * n_agents)
    zeros = np.zeros(len(action), dtype=int)
    return Dataset(
        state=zeros, action=action, reward=payoff[tuple(action.T)], next_state=zeros,
        done=zeros == 0, n_actions=(2,) * n_agents, n_states=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n_agents", "ratio", "changes"),
    [
        (3, "geometric", {"turn_steps": 2, "calls": 150}),
        (3, "full", {"advantage_critic": "current"}),
        (3, "adaptive", {"turn_steps": 2, "blocks": 2, "calls": 150}),
        (4, "full", {"blocks": 1}),
    ],
)
def test_more_agents_and_every_ratio(n_agents, ratio, changes):
    data, variant = random_game(n_agents), in_sample.Variant(**VARIANTS[ratio])
    found = learn(data, 0.7, ratio=ratio, ratio_share=0.6, **{"calls": 250} | changes)
    closed = closed_form(data, 0.7, 0.0, variant=variant)
    assert distance(closed, data.behaviour()) > 0.1  # there is something to learn
    assert distance(found, closed) < 1e-3
    assert residual(data, found, 0.7, 0.0, variant=variant) < 1e-3
    if ratio == "adaptive":  # it is at work: neither of the two others ends there
        for other in ("geometric", "full"):
            end = closed_form(data, 0.7, 0.0, variant=in_sample.Variant(**VARIANTS[other]))
            assert distance(end, closed) > 0.01


def two_step_episodes() -> tuple[Dataset, EpisodeBatch]:
    """Every pair of joint actions once: from state 0 to state 1 or 2, and from there to the end."""
    pairs = [(a, b) for a in np.ndindex(2, 2) for b in np.ndindex(2, 2)]
    action = np.array(pairs)  # [16, 2, n]
    middle = 1 + action[:, 0].sum(-1) % 2
    payoff = np.random.default_rng(1).normal(size=(3, 2, 2))
    state = np.stack([np.zeros_like(middle), middle], axis=1)  # [16, 2]
    reward = payoff[state, action[..., 0], action[..., 1]]
    data = Dataset(
        state=state.ravel(), action=action.reshape(-1, 2), reward=reward.ravel(),
        next_state=np.stack([middle, middle], axis=1).ravel(),
        done=np.tile([False, True], 16), n_actions=(2, 2), n_states=3,
    )  # fmt: skip
    single = as_batch(data)
    # rows 2e and 2e + 1 are the steps of episode e; the last step is seen once more at the end
    steps = {
        key: th.stack([value[0::2, 0], value[1::2, 0], value[1::2, 1]], dim=1)
        for key, value in single.data.items()
    }
    return data, EpisodeBatch(steps)


def test_lambda_returns_pay_the_regularisers_at_every_step():
    (data, batch), td_lambda = two_step_episodes(), 0.6
    variant = in_sample.Variant(td_lambda=td_lambda)
    found = learn(data, 0.7, 0.2, gamma=0.9, batch=batch, td_lambda=td_lambda, lr=0.01)
    closed = closed_form(data, 0.7, 0.2, 0.9, variant)
    assert distance(found, closed) < 1e-3
    assert distance(closed_form(data, 0.7, 0.2, 0.9), closed) > 0.005  # lambda does something
    assert residual(data, found, 0.7, 0.2, 0.9, variant) < 1e-3
