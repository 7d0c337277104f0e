r"""Fitted Q evaluation (FQE): joint, additive, and of one agent at a time.

.. math:: Q(s, a) \leftarrow r + \gamma (1 - d) E_{a' \sim \pi(\cdot | \tau')} Q(s', a')

Q is linear in features phi(s, a) that are learnt once from the data, for all policies
(`features.py`). So each step of FQE is a least-squares problem,

.. math:: (G + \Lambda) \theta_{k+1} = b + \gamma C \theta_k, \quad
          G = \Phi^T \Phi,\; b = \Phi^T r,\; C = \Phi^T \operatorname{diag}(1 - d) \Phi'_\pi

and its fixed point, (G + Lambda - gamma C) theta = b, is solved at once (LSTD-Q). There is no
target network, no learning rate and no question whether it has converged; a policy costs one pass
over the data for C. G, b and C are kept for blocks of episodes, so that a bootstrap draw is another
sum of blocks and another solution.

Lambda, a ridge, is ten times as strong on the features of actions as on those of the state alone:
where the data do not say what an action does, it is worth as much as the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch as th

from inspo.estimation.features import BLOCK, Features
from inspo.estimation.logged import Logged
from inspo.estimation.resampling import Resamples

RIDGE = 1e-4  # of the features' mean square
AT_ONCE = 64  # systems of equations


@dataclass(frozen=True)
class Fit:
    """Q of one policy.

    members: V of the first states by each member of the ensemble (each agent, in one-agent FQE),
    float64 `[K]`. draws: V in each bootstrap draw, `[B]` by one member drawn with it, or `[B, K]`
    by each agent. weights: theta `[K, P]`.
    """

    members: np.ndarray
    draws: np.ndarray
    weights: th.Tensor


class LinearFQE:
    """FQE on one dataset, for any number of policies."""

    def __init__(
        self,
        features: Features,
        data: Logged,
        resamples: Resamples,
        gamma: float = 1.0,
        ensemble: bool = True,
    ):
        """features: with nothing left to learn. gamma: in [0, 1]. ensemble: whether its members
        estimate the same, so that a bootstrap draw takes one of them."""
        self.features, self.data, self.gamma = features, data, gamma
        self.counts = th.from_numpy(resamples.blocks)  # [B, n_blocks]
        block = th.from_numpy(resamples.block)
        of_steps, blocks = block[data.episode], range(resamples.n_blocks)
        self.steps = [(of_steps == k).nonzero().squeeze(1) for k in blocks]
        self.starts = [(block == k).nonzero().squeeze(1) for k in blocks]
        # Sums over the transitions of each block: [n_blocks, K, P, P] and [n_blocks, K, P].
        self.squares = self._per_block(self._squares)
        self.rewards = self._per_block(self._rewards)
        members = self.squares.shape[1]
        self.choices = th.from_numpy(resamples.choices(members)) if ensemble else None
        scale = self.squares.double().sum(0).diagonal(dim1=1, dim2=2).mean(-1)  # [K]
        ridge = th.full((self.squares.shape[-1],), RIDGE, dtype=th.float64)
        ridge[: features.n_shared] /= 10
        self.ridge = th.diag_embed(ridge * scale[:, None])  # [K, P, P]

    @th.no_grad()
    def evaluate(self, probs: th.Tensor) -> Fit:
        """FQE of the policy with these probabilities `[R, n, A]`."""
        systems = self.squares - self.gamma * self._per_block(self._successors, probs)
        first = th.stack([self._starts(which, probs) for which in self.starts]).double()
        n_starts = th.tensor([len(which) for which in self.starts], dtype=th.float64)

        def solve(counts: th.Tensor, k: int) -> tuple[th.Tensor, th.Tensor]:
            """theta `[B, P]` and V `[B]` by member k, of blocks that count so often."""
            system = (counts.float() @ systems[:, k].flatten(1)).unflatten(1, systems.shape[2:])
            right = counts @ self.rewards[:, k].double()
            weights = th.linalg.solve(system.double() + self.ridge[k], right)
            mean = counts @ first[:, k] / (counts @ n_starts)[:, None]
            return weights, (mean * weights).sum(-1)

        everything = th.ones(1, len(self.steps), dtype=th.float64)
        weights, values = zip(*(solve(everything, k) for k in range(systems.shape[1])))
        draws = th.zeros(len(self.counts), len(values), dtype=th.float64)
        for k in range(len(values)):
            for which in self._draws_of(k).split(AT_ONCE):
                draws[which, k] = solve(self.counts[which], k)[1]
        if self.choices is not None:
            draws = draws.gather(1, self.choices[:, None]).squeeze(1)
        return Fit(th.cat(values).numpy(), draws.numpy(), th.cat(weights).float())

    def _draws_of(self, k: int) -> th.Tensor:
        """The bootstrap draws for which member k is asked."""
        if self.choices is None:
            return th.arange(len(self.counts))
        return (self.choices == k).nonzero().squeeze(1)

    @th.no_grad()
    def values(self, probs: th.Tensor, weights: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Q of the logged actions `[K, M]`, and V under the policy in every row `[K, R]`."""
        column, rows = weights.unsqueeze(-1), th.arange(len(self.data.state))
        steps = th.arange(len(self.data.now))
        q = [(self.features.taken(b) @ column).squeeze(-1) for b in steps.split(BLOCK)]
        v = [(self.features.expected(b, probs[b]) @ column).squeeze(-1) for b in rows.split(BLOCK)]
        return th.cat(q, dim=1), th.cat(v, dim=1)

    # Sums over the transitions `which`

    @th.no_grad()
    def _per_block(self, of: Callable[..., th.Tensor], *args: th.Tensor) -> th.Tensor:
        """`of(which, *args)` of each block's transitions, stacked."""
        sums = []
        for steps in self.steps:
            sums.append(sum((of(part, *args) for part in steps.split(BLOCK)), start=th.zeros(())))
        return th.stack(sums)

    def _squares(self, which: th.Tensor) -> th.Tensor:
        phi = self.features.taken(which)
        return phi.transpose(1, 2) @ phi

    def _rewards(self, which: th.Tensor) -> th.Tensor:
        return self.features.taken(which).transpose(1, 2) @ self.data.reward[which]

    def _successors(self, which: th.Tensor, probs: th.Tensor) -> th.Tensor:
        then = self.data.then[which]
        following = self.features.expected(then, probs[then]) * self.data.goes_on[which, None]
        return self.features.taken(which).transpose(1, 2) @ following

    def _starts(self, which: th.Tensor, probs: th.Tensor) -> th.Tensor:
        first = self.data.first[which]
        return self.features.expected(first, probs[first]).sum(1)
