"""The filled steps of a batch of episodes, without padding."""

from __future__ import annotations

import numpy as np
import torch as th

from inspo.utils.rl_utils import td_lambda_targets


def to_device(array: np.ndarray, device: th.device) -> th.Tensor:
    """A copy on `device` that does not wait for what the device was given to do before."""
    tensor = th.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class PackedEpisodes:
    """Index of the `R` filled steps of a batch, so that no work is done on padding.

    Rows run over time first and over episodes second, the longest episode first, as in torch's
    `PackedSequence`: the rows of a step are followed by those of the next one, of as many episodes
    or fewer. All of it is worked out on the host and copied to the device at once: an update need
    not wait for the device to learn how much there is to do.

    Attributes:
        sizes: the number of episodes that have a step t, for every t, `[longest + 1]`.
        index: long `[R]`, the row's place in the flattened batch `[B * T]`.
        time: long `[R]`, the row's step.
        transitions: long `[M]`, the rows that begin a transition (all but each episode's last,
            which is only bootstrapped from).
        successors: long `[M]`, the row that each of them leads to.
    """

    def __init__(self, lengths: np.ndarray, max_seq_length: int, device: str | th.device = "cpu"):
        """lengths: transitions of each episode, `[B]`; max_seq_length: T, more than any of them."""
        self.batch_size, self.max_seq_length = len(lengths), max_seq_length
        order = np.argsort(-lengths, kind="stable")
        filled = np.arange(max_seq_length)[:, None] <= lengths[order]  # [T, B]
        self.time_of_rows, place = filled.nonzero()
        self.episode_of_rows = order[place]
        self.sizes: list[int] = [int(n) for n in filled.sum(1) if n]
        begins = self.time_of_rows < lengths[self.episode_of_rows]
        (transitions,) = begins.nonzero()
        starts = np.cumsum([0, *self.sizes])
        successors = starts[self.time_of_rows[transitions] + 1] + place[transitions]
        index = self.episode_of_rows * max_seq_length + self.time_of_rows
        parts = index, self.time_of_rows, transitions, successors
        copied = to_device(np.concatenate(parts), th.device(device)).split([*map(len, parts)])
        self.index, self.time, self.transitions, self.successors = copied

    def pack(self, x: th.Tensor) -> th.Tensor:
        """`[B, T, ...]` -> `[R, ...]`."""
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, rows: th.Tensor, at: th.Tensor | None = None) -> th.Tensor:
        """`[R, ...]` -> `[B, T, ...]`, zeros elsewhere; `at` says which rows if not all."""
        index = self.index if at is None else self.index[at]
        flat = rows.new_zeros(self.batch_size * self.max_seq_length, *rows.shape[1:])
        return flat.index_copy(0, index, rows).view(self.batch_size, -1, *rows.shape[1:])

    def td_lambda(
        self,
        reward: th.Tensor,
        terminated: th.Tensor,
        next_values: th.Tensor,
        gamma: float,
        td_lambda: float,
    ) -> th.Tensor:
        """TD(lambda) returns of the transitions (`rl_utils.td_lambda_targets`).

        terminated: `[M]`. next_values: V of the step that each transition leads to, `[M]`, or
        `[K, M]` for several V at once; reward: `[M]`, or one for each V. Returns the shape of
        `next_values`.
        """
        if td_lambda == 0:
            return reward + gamma * (1 - terminated) * next_values
        several = next_values.reshape(-1, len(terminated))
        rewards = reward.reshape(-1, len(terminated))
        rows = th.cat([terminated[None], th.ones_like(terminated)[None], rewards, several]).T
        cells = self.unpack(rows, self.transitions).movedim(-1, 0)  # [2 + K + K, B, T]
        ended, mask = cells[:2]
        rewards, several = cells[2 : 2 + len(rewards)], cells[2 + len(rewards) :]
        targets = td_lambda_targets(rewards, ended, mask, several, gamma, td_lambda)
        return targets.flatten(1)[:, self.index[self.transitions]].reshape(next_values.shape)
