"""The filled steps of a batch of episodes, without padding."""

from __future__ import annotations

import torch as th

from inspo.utils.rl_utils import td_lambda_targets


class PackedEpisodes:
    """Index of the `R` filled steps of a batch, so that no work is done on padding.

    Rows run over time first and over episodes second. Everything but the recurrence treats them as
    a flat batch `[R, ...]`; `to_time_major` and `from_time_major` lead into a recurrence and back.

    Attributes:
        index: long `[R]`, the row's place in the flattened batch `[B * T]`.
        time: long `[R]`, the row's step.
        transitions: long `[M]`, the rows that begin a transition (all but each episode's last,
            which is only bootstrapped from).
        successors: long `[M]`, the row that each of them leads to.
    """

    def __init__(self, filled: th.Tensor):
        """filled: `[B, T, 1]` or `[B, T]`, a prefix of ones in each episode."""
        filled = filled.reshape(filled.shape[0], filled.shape[1]).T > 0  # [T, B]
        self.max_seq_length, self.batch_size = filled.shape
        self._cells = filled.flatten().nonzero().squeeze(1)  # places in [T * B]
        self.time = self._cells // self.batch_size
        self.index = (self._cells % self.batch_size) * self.max_seq_length + self.time
        row_of = filled.flatten().cumsum(0) - 1
        begins = (filled[:-1] & filled[1:]).flatten().nonzero().squeeze(1)
        self.transitions = row_of[begins]
        self.successors = row_of[begins + self.batch_size]

    def pack(self, x: th.Tensor) -> th.Tensor:
        """`[B, T, ...]` -> `[R, ...]`."""
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, rows: th.Tensor, at: th.Tensor | None = None) -> th.Tensor:
        """`[R, ...]` -> `[B, T, ...]`, zeros elsewhere; `at` says which rows if not all."""
        index = self.index if at is None else self.index[at]
        flat = rows.new_zeros(self.batch_size * self.max_seq_length, *rows.shape[1:])
        return flat.index_copy(0, index, rows).view(self.batch_size, -1, *rows.shape[1:])

    def to_time_major(self, rows: th.Tensor) -> th.Tensor:
        """`[R, ...]` -> `[T, B, ...]`, zeros in the padding."""
        flat = rows.new_zeros(self.max_seq_length * self.batch_size, *rows.shape[1:])
        return flat.index_copy(0, self._cells, rows).view(-1, self.batch_size, *rows.shape[1:])

    def from_time_major(self, x: th.Tensor) -> th.Tensor:
        """`[T, B, ...]` -> `[R, ...]`."""
        return x.flatten(0, 1).index_select(0, self._cells)

    def td_lambda(
        self,
        reward: th.Tensor,
        terminated: th.Tensor,
        next_values: th.Tensor,
        gamma: float,
        td_lambda: float,
    ) -> th.Tensor:
        """TD(lambda) returns of the transitions (`rl_utils.td_lambda_targets`).

        reward, terminated: `[M]`. next_values: V of the step that each transition leads to, `[M]`,
        or `[..., M]` for several V at once. Returns the shape of `next_values`.
        """
        if td_lambda == 0:
            return reward + gamma * (1 - terminated) * next_values
        several = next_values.reshape(-1, len(reward))
        rows = th.stack([reward, terminated, th.ones_like(reward), *several], dim=-1)
        cells = self.unpack(rows, self.transitions).movedim(-1, 0)  # [3 + K, B, T]
        reward, terminated, mask = cells[:3]
        targets = td_lambda_targets(reward, terminated, mask, cells[3:], gamma, td_lambda)
        return targets.flatten(1)[:, self.index[self.transitions]].reshape(next_values.shape)
