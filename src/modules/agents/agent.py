"""What a controller asks of its networks."""

from __future__ import annotations

import torch as th
from torch import nn

from inspo.components.packed import PackedEpisodes
from inspo.utils.settings import Settings


class Agent(nn.Module):
    """Maps what agents see to one output per action, with or without a memory.

    `forward` plays one step, `unroll` whole episodes in one fused call; a test holds them equal.
    """

    def __init__(self, input_shape: int, args: Settings):
        super().__init__()

    def init_hidden(self) -> th.Tensor:
        """The memory before an episode's first step, `[1, H]`."""
        raise NotImplementedError

    def forward(self, inputs: th.Tensor, hidden: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """One step: inputs `[B * n, I]`, hidden `[B * n, H]` -> outputs `[B * n, A]`, hidden."""
        raise NotImplementedError

    def unroll(self, inputs: th.Tensor, packed: PackedEpisodes) -> th.Tensor:
        """Rows of whole episodes `[R, n, I]` -> `[R, n, A]`."""
        raise NotImplementedError
