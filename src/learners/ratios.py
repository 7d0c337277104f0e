"""What a transition counts for in InSPO: the ratio of Eq. 14, D_rho of Eq. 15, Eq. 20's weights."""

from __future__ import annotations

import torch as th

from inspo.modules.autoregressive import LOG_FLOOR

LOG_MU_FLOOR = -10.0  # of log mu in the exponent of Eq. 20
Resampled = tuple[th.Tensor, th.Tensor]  # index, long `[M]`, and weight `[M]`, of D_rho
BISECTIONS = 24  # of [0, 1]: to the last digit of a float


def others_log_ratio(log_pi: th.Tensor, log_mu_others: th.Tensor, i: int) -> th.Tensor:
    """log pi^{-i}(a^{-i} | s) / mu^{-i}(a^{-i} | s, a^i), the ratio of Eq. 14. `[M]`.

    log_pi `[M, n]`: log pi_j(a_j) of the actions in the data under the present policies, new ones
    of the agents already updated, old ones of the others. log_mu_others `[M]`: log mu^{-i} of
    Eq. 22. Every logarithm is held at LOG_FLOOR an agent.
    """
    log_pi = log_pi.clamp(min=LOG_FLOOR)
    return log_pi.sum(-1) - log_pi[:, i] - log_mu_others.clamp(min=LOG_FLOOR * log_pi.shape[1])


def effective_share(log_ratio: th.Tensor) -> th.Tensor:
    """The effective sample (sum rho)^2 / sum rho^2 as a share of the M transitions.

    `[..., M]` -> `[...]`.
    """
    first, second = log_ratio.logsumexp(-1), (2 * log_ratio).logsumexp(-1)
    return (2 * first - second).exp() / log_ratio.shape[-1]


def ratio_exponent(log_ratio: th.Tensor, ratio: str, n_agents: int, share: float) -> th.Tensor:
    """The power to which the ratio of Eq. 14 is raised, `[]`.

    ratio:
        geometric: 1 / (n - 1), Eq. 23.
        full: 1, Eq. 14.
        adaptive: the largest up to 1 with which the effective sample is `share` of the data. It
            falls with the exponent, so bisection finds it.
        none: 0, all transitions count alike.
    """
    fixed = {"geometric": 1 / max(n_agents - 1, 1), "full": 1.0, "none": 0.0}
    if ratio in fixed:
        return log_ratio.new_tensor(fixed[ratio])
    low, high = log_ratio.new_zeros(()), log_ratio.new_ones(())
    enough = effective_share(log_ratio) >= share
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = effective_share(middle * log_ratio) >= share
        low, high = th.where(above, middle, low), th.where(above, high, middle)
    return th.where(enough, 1.0, low)


def resample(log_rho: th.Tensor, how: str) -> Resampled:
    """A dataset D_rho drawn from the data, Eq. 15: which transitions, and their weights.

    log_rho: `[M]`.
    how:
        draw: M transitions with replacement, with probability proportional to rho, weight 1.
        weight: every transition once, in random order, with weight M rho / sum(rho): the same
            expectation without the variance of drawing.
    """
    ratio = (log_rho - log_rho.max()).exp()  # only proportions count
    if how == "draw":
        # The step that follows says what is wrong; multinomial would end the program (on a GPU).
        index = th.multinomial(ratio.nan_to_num(nan=1.0), len(ratio), replacement=True)
        return index, th.ones_like(ratio)
    index = th.randperm(len(ratio), device=ratio.device)
    return index, ratio[index] * (len(ratio) / ratio.sum())


def advantage_weights(
    advantage: th.Tensor, log_mu: th.Tensor, alpha: th.Tensor, beta: float, clip: float
) -> tuple[th.Tensor, th.Tensor]:
    """exp((A - beta log mu(a)) / (alpha + beta)), Eq. 20, with the exponent cut at `clip`.

    advantage and log_mu `[..., M]`, of the actions in the data. Returns weights and exponents.
    """
    exponent = (advantage - beta * log_mu.clamp(min=LOG_MU_FLOOR)) / (alpha + beta)
    return exponent.clamp(max=clip).exp(), exponent
