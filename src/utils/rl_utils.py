"""Small pure functions that the learners share. `m` is the mask of the transitions."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch as th
import torch.nn.functional as F

UNAVAILABLE = -1e10  # a finite stand-in for -inf, so that 0 * log 0 stays 0


def masked_log_softmax(logits: th.Tensor, avail: th.Tensor) -> th.Tensor:
    """Log-probabilities over the available actions; about -1e10 for the others. `[..., A]`."""
    return F.log_softmax(logits.masked_fill(avail == 0, UNAVAILABLE), dim=-1)


def masked_logsumexp(values: th.Tensor, avail: th.Tensor) -> th.Tensor:
    """log sum_a exp values(a) over the available actions. `[..., A]` -> `[...]`."""
    return values.masked_fill(avail == 0, UNAVAILABLE).logsumexp(-1)


def gather_actions(values: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """values `[..., A]` at actions `[...]`."""
    return values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def one_hot(index: th.Tensor, width: int) -> th.Tensor:
    """0 and 1 as floats, `[...]` -> `[..., width]`; a negative index has no 1."""
    return (index.unsqueeze(-1) == th.arange(width, device=index.device)).float()


def kl_divergence(log_p: th.Tensor, log_q: th.Tensor) -> th.Tensor:
    """KL(p || q) of masked log-probabilities. `[..., A]` -> `[...]`."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def entropy(log_p: th.Tensor) -> th.Tensor:
    """Entropy of masked log-probabilities, in nats. `[..., A]` -> `[...]`."""
    return -(log_p.exp() * log_p).sum(-1)


def td_lambda_targets(
    reward: th.Tensor,
    terminated: th.Tensor,
    mask: th.Tensor,
    next_values: th.Tensor,
    gamma: float,
    td_lambda: float,
) -> th.Tensor:
    """TD(lambda) returns, as one product with the matrix of discounts.

        G_t = r_t + gamma (1 - d_t) [(1 - lambda) V_{t+1} + lambda G_{t+1}]

    and the last transition of an episode bootstraps from V alone: fully if it was cut (d = 0), not
    at all if it ended (d = 1).

    Args: all `[B, T]` for T transitions; mask is a prefix of ones in each row; `next_values[t]` is
        V(s_{t+1}), `[..., B, T]` for several V at once.
    Returns: the shape of `next_values`, zeros where the mask is zero.
    """
    steps = mask.shape[1]
    last = mask - F.pad(mask[:, 1:], (0, 1))
    bootstrap = th.where(last > 0, 1.0, 1.0 - td_lambda)
    gain = mask * (reward + gamma * (1 - terminated) * bootstrap * next_values)
    lag = th.arange(steps, device=mask.device)
    lag = lag[None, :] - lag[:, None]
    discount = th.where(lag >= 0, (gamma * td_lambda) ** lag.clamp(min=0).float(), 0.0)
    return mask * (gain @ discount.T)


def explained_variance(prediction: th.Tensor, target: th.Tensor) -> th.Tensor:
    """R^2 of `prediction` for `target`: 1 - Var(target - prediction) / Var(target). `[..., M]`."""
    correction = min(1, target.shape[-1] - 1)  # one number has no variance
    error = (target - prediction).var(-1, correction=correction)
    return 1 - error / target.var(-1, correction=correction).clamp(min=1e-8)


@th.no_grad()
def soft_update(
    targets: Iterable[th.nn.Module], online: Iterable[th.nn.Module], tau: float
) -> None:
    """target <- (1 - tau) target + tau online, all parameters of all networks in one fused call."""
    slow: list[th.Tensor] = [p for network in targets for p in network.parameters()]
    th._foreach_lerp_(slow, [p for network in online for p in network.parameters()], tau)


def draw(probabilities: th.Tensor) -> th.Tensor:
    """One action of each distribution, `[..., A]` -> long `[...]`.

    The numbers that `multinomial` draws with the same seed, without its check, for which a GPU's
    host would have to wait.
    """
    return (probabilities / th.empty_like(probabilities).exponential_()).argmax(-1)


def cosine_rate(optimiser: th.optim.Optimizer, rate: float, progress: float) -> None:
    """Set the learning rate to `rate` (1 + cos(pi progress)) / 2, progress in [0, 1]."""
    scaled = rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    for group in optimiser.param_groups:
        group["lr"] = scaled
