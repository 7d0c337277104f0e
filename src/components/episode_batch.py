"""Batches of episodes, in EPyMARL's shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, TypeAlias, overload

import numpy as np
import torch as th

from inspo.components.packed import PackedEpisodes
from inspo.utils.memory import check_memory

Scheme: TypeAlias = dict[str, dict[str, Any]]  # key -> vshape, dtype, group


def build_scheme(env_info: Mapping[str, int]) -> Scheme:
    """The keys of a batch with their shapes and types, from an environment's `get_env_info()`."""
    return {
        "state": {"vshape": env_info["state_shape"], "dtype": th.float32},
        "obs": {"vshape": env_info["obs_shape"], "group": "agents", "dtype": th.float32},
        "actions": {"vshape": (1,), "group": "agents", "dtype": th.long},
        "avail_actions": {
            "vshape": (env_info["n_actions"],),
            "group": "agents",
            "dtype": th.int,
        },
        "reward": {"vshape": (1,), "dtype": th.float32},
        "terminated": {"vshape": (1,), "dtype": th.uint8},
        "filled": {"vshape": (1,), "dtype": th.long},
    }


class EpisodeBatch:
    """Tensors `[B, T, ...]` under the keys of `build_scheme` (and whatever else a buffer adds).

    `filled` is 1 for steps 0..L of an episode of L transitions, the terminal observation included;
    `terminated` is 1 at step L - 1 if the episode truly ended there.

    What decides about shapes is kept on the host: whoever makes a batch for another device says it,
    or the first who asks waits for that device.
    """

    def __init__(
        self,
        data: dict[str, th.Tensor],
        lengths: np.ndarray | None = None,
        ended: np.ndarray | None = None,
    ):
        """lengths, ended: as the properties of these names, where they are known."""
        self.data = data
        self.batch_size, self.max_seq_length = data["filled"].shape[:2]
        if lengths is not None:
            self.lengths = lengths
        if ended is not None:
            self.ended = ended

    @classmethod
    def empty(
        cls,
        scheme: Scheme,
        n_agents: int,
        batch_size: int,
        max_seq_length: int,
        device: str | th.device = "cpu",
    ) -> EpisodeBatch:
        """A batch of zeros, nothing filled. ConfigError if there is no memory for it."""
        data, shapes = {}, {}
        for key, info in scheme.items():
            vshape = info["vshape"]
            shape = (vshape,) if isinstance(vshape, int) else tuple(vshape)
            agents = (n_agents,) if info.get("group") == "agents" else ()
            shapes[key] = (batch_size, max_seq_length, *agents, *shape)
        types = {key: info.get("dtype", th.float32) for key, info in scheme.items()}
        check_memory(
            sum(math.prod(shapes[key]) * types[key].itemsize for key in shapes),
            device,
            f"{batch_size:,} episodes of {max_seq_length:,} steps",
            "Choose a smaller buffer_size or batch_size_run, or a lower limit of steps",
        )
        for key, shape in shapes.items():
            data[key] = th.zeros(shape, dtype=types[key], device=device)
        return cls(data)

    @property
    def device(self) -> th.device:
        return self.data["filled"].device

    @overload
    def __getitem__(self, item: str) -> th.Tensor: ...

    @overload
    def __getitem__(self, item: Any) -> EpisodeBatch: ...

    def __getitem__(self, item: Any) -> th.Tensor | EpisodeBatch:
        """`batch["obs"]` is a tensor; `batch[bs]` and `batch[bs, ts]` are batches."""
        if isinstance(item, str):
            return self.data[item]
        return EpisodeBatch({key: self[key][item] for key in self.keys()})

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def keys(self) -> Iterable[str]:
        return self.data.keys()

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of transitions of each episode, int `[B]`, on the host."""
        filled: np.ndarray = self.data["filled"].flatten(1).sum(1).cpu().numpy()
        return filled - 1

    @cached_property
    def ended(self) -> np.ndarray:
        """Whether each episode truly ended, bool `[B]`, on the host."""
        terminated = self["terminated"].squeeze(-1).cpu().numpy()
        ended: np.ndarray = terminated[np.arange(self.batch_size), self.lengths - 1] > 0
        return ended

    @cached_property
    def packed(self) -> PackedEpisodes:
        """Where the filled steps lie."""
        return PackedEpisodes(self.lengths, self.max_seq_length, self.device)

    @property
    def n_filled(self) -> int:
        """The number of filled steps."""
        return int(self.lengths.sum()) + self.batch_size

    def rows(self, key: str) -> th.Tensor:
        """The filled steps of `key`, `[R, ...]`, in the order of `packed`."""
        return self.packed.pack(self.data[key])

    def max_t_filled(self) -> int:
        """The number of steps of the longest episode, its terminal observation included."""
        return int(self.lengths.max()) + 1

    def to(self, device: str | th.device) -> EpisodeBatch:
        data = {key: self[key].to(device) for key in self.keys()}
        return EpisodeBatch(data, self.lengths, self.ended)
