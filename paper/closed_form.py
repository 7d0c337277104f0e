"""Where InSPO goes on the matrix games in closed form, beside the networks of Figure 5 and paths.

The closed form is `tabular.in_sample`, which knows what the networks know: the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inspo.components.schedules import hold_decay
from inspo.experiments.tables import fixed
from inspo.tabular import in_sample
from inspo.tabular.game import Policies, joint_policy
from inspo.tabular.inspo import divergence, entropy
from inspo.tabular.matrix_games import payoff_tensor
from inspo.tabular.paper_games import dataset

SWEEPS = 400  # all of it has long converged by then
TILT = 0.01

Schedule = Callable[[float], float]  # of beta, over the share of the sweeps that are done


def closed_form(
    game: str,
    quality: str,
    alpha: float,
    beta: Schedule,
    start: str = "behaviour",
    step: float | None = None,
) -> list[Policies]:
    """Policies before every sweep and after the last one, `SWEEPS + 1` entries.

    start: behaviour; uniform; tilted (uniform, but agent 1 prefers its first action a little, as a
    random network may). step: None updates one agent after the other; a number in (0, 1] all at
    once, each that share of the way from its policy to its response (in log-probabilities; 1 is the
    paper's update).
    """
    data = dataset(game, quality)
    mu = data.behaviour()
    policies = mu if start == "behaviour" else [np.full_like(m, 1 / m.shape[-1]) for m in mu]
    if start == "tilted":
        policies[0][:, 0] += TILT
        policies[0][:, 1] -= TILT
    return in_sample.iterate(
        data, alpha, lambda k: beta(k / SWEEPS), sweeps=SWEEPS, initial=policies, order=[0, 1],
        blocks=1 if step else None, step=step or 1.0,
    ).history  # fmt: skip


@dataclass(frozen=True)
class Ending:
    """Where the closed form ends: one joint policy `[A_1, A_2]`, or two that alternate."""

    joints: list[np.ndarray]
    returns: list[float]

    def __str__(self) -> str:
        if len(self.returns) == 1:
            return fixed(self.returns[0])
        return "cycle of " + " and ".join(fixed(value) for value in sorted(self.returns))


def ending(game: str, history: Sequence[Policies]) -> Ending:
    """The last joint policy, or the last two if the end is a cycle of two."""
    last, before = (joint_policy(policies)[0] for policies in (history[-1], history[-2]))
    joints = [last] if np.abs(last - before).max() < 1e-3 else [last, before]
    return Ending(joints, [float((joint * payoff_tensor(game)).sum()) for joint in joints])


def beta_of(config: Mapping[str, Any]) -> Schedule:
    """beta over the share of the policies' training, as the learner has it."""
    return lambda share: hold_decay(
        config["beta"], config["beta_finish"], config["beta_hold"], config["beta_end"], share
    )


def potential(game: str, joint: np.ndarray, mu: Policies, alpha: float, beta: float) -> float:
    """Phi = E_pi[R] - alpha sum_i KL(pi_i || mu_i) + beta sum_i H(pi_i) of a factorised policy."""
    policies = [joint.sum(1)[None], joint.sum(0)[None]]  # [1, A_i]
    kl = sum(float(divergence(p, m)[0]) for p, m in zip(policies, mu))
    disorder = sum(float(entropy(p)[0]) for p in policies)
    return float((joint * payoff_tensor(game)).sum()) - alpha * kl + beta * disorder
