"""AlberDICE's ratios of occupancies, which its checkpoints carry, as an estimate.

Its advantages e_i give the share of agent i's optimal occupancy in the data, d_i / d^D = rho_i
exp(e_i / alpha) up to a factor (arXiv 2311.02194), with rho_i = pi^{-i} / mu^{-i} of the others'
logged actions. Weighted by it the logged rewards have the mean reward of a step under the policy;
times the data's mean length that is comparable with returns where episodes are about as long.
"""

from __future__ import annotations

import numpy as np
import torch as th

from inspo.estimation.logged import Logged
from inspo.estimation.policies import Policy
from inspo.modules.critics import StateActionCritic
from inspo.utils.rl_utils import gather_actions

LARGEST = 20.0  # of the exponent: a ratio of 5e8


def log_weights(
    e: th.Tensor, alpha: float, log_pi: th.Tensor, log_mu: th.Tensor, joint_log_mu: th.Tensor
) -> th.Tensor:
    """log of rho_i exp(e_i / alpha) of every transition and agent, `[M, n]`, at most 0 in each
    column.

    e `[M, n]`: e_i of the logged actions. log_pi, log_mu `[M, n]`: of each agent's logged action.
    joint_log_mu `[M]`: of the joint one.
    """
    others = log_pi.sum(-1, keepdim=True) - log_pi
    log_ratio = others - (joint_log_mu.unsqueeze(-1) - log_mu)
    found = log_ratio + e / alpha
    return found - found.amax(0, keepdim=True)


def evaluate(
    weights: np.ndarray, reward: np.ndarray, episode: np.ndarray, counts: np.ndarray, length: float
) -> np.ndarray:
    """sum w r / sum w times `length`, the mean over agents, for every draw of episodes. `[B]`.

    weights `[M, n]`, reward and episode `[M]`, counts `[B, E]`.
    """
    n_episodes = counts.shape[1]
    values = []
    for w in weights.T:
        paid = counts @ np.bincount(episode, w * reward, n_episodes)
        values.append(paid / (counts @ np.bincount(episode, w, n_episodes)))
    mean: np.ndarray = length * np.mean(values, axis=0)
    return mean


@th.no_grad()
def advantages(policy: Policy, data: Logged) -> tuple[th.Tensor, float] | None:
    """e_i of the logged actions, `[M, n]`, and alpha at the policy's step; None where the
    checkpoint has no such ratios."""
    path = policy.folder / "learner.th"
    if policy.algorithm != "alberdice" or not path.is_file():
        return None
    stored = th.load(path, map_location="cpu", weights_only=True)["networks"]["advantages"]
    config = policy.settings
    state = data.state[data.now]
    found = []
    for i in range(data.actions.shape[1]):
        critic = StateActionCritic(state.shape[1], config.n_actions, config.critic_hidden_dim)
        own = {k.partition(".")[2]: v for k, v in stored.items() if k.partition(".")[0] == str(i)}
        critic.load_state_dict(own)
        found.append(gather_actions(critic(state), data.actions[:, i]))
    share = min(policy.step / config.t_max, 1.0)
    alpha = config.alpha_start * (config.alpha_end / config.alpha_start) ** share
    return th.stack(found, dim=-1).clamp(max=LARGEST * alpha), alpha
