"""A ring of the latest episodes, for the off-policy online learners."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th

from inspo.components.episode_batch import EpisodeBatch, Scheme
from inspo.components.packed import to_device
from inspo.utils.checkpoints import get_generator_state, set_generator_state


class ReplayBuffer:
    """The last `buffer_size` episodes, on one device."""

    def __init__(
        self,
        scheme: Scheme,
        n_agents: int,
        buffer_size: int,
        max_seq_length: int,
        seed: int,
        device: str | th.device = "cpu",
    ):
        self.storage = EpisodeBatch.empty(scheme, n_agents, buffer_size, max_seq_length, device)
        self.lengths = np.zeros(buffer_size, dtype=np.int64)  # of each episode, on the host
        self.buffer_size = buffer_size
        self.episodes_in_buffer = 0
        self.index = 0
        self.rng = np.random.default_rng(seed)

    def insert_episode_batch(self, batch: EpisodeBatch) -> None:
        places = (self.index + np.arange(batch.batch_size)) % self.buffer_size
        self.lengths[places] = batch.lengths
        on_device = to_device(places, self.storage.device)
        for key, value in batch.data.items():
            self.storage[key][on_device] = value.to(self.storage.device)
        self.index = int((self.index + batch.batch_size) % self.buffer_size)
        self.episodes_in_buffer = min(self.episodes_in_buffer + batch.batch_size, self.buffer_size)

    def can_sample(self, batch_size: int) -> bool:
        return self.episodes_in_buffer >= batch_size

    def sample(self, batch_size: int) -> EpisodeBatch:
        """Episodes drawn without replacement, trimmed to the longest of them."""
        chosen = self.rng.choice(self.episodes_in_buffer, batch_size, replace=False)
        lengths = self.lengths[chosen]
        steps, places = int(lengths.max()) + 1, to_device(chosen, self.storage.device)
        return EpisodeBatch({k: v[places, :steps] for k, v in self.storage.data.items()}, lengths)

    def state_dict(self) -> dict[str, Any]:
        """Everything, trimmed to what is filled (for an exact resume)."""
        n = self.episodes_in_buffer
        steps = int(self.lengths[:n].max()) + 1 if n else 0
        return {
            "data": {key: value[:n, :steps].clone() for key, value in self.storage.data.items()},
            "index": self.index,
            "rng": get_generator_state(self.rng),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state["data"].items():
            self.storage[key].zero_()
            self.storage[key][: value.shape[0], : value.shape[1]] = value
        n = self.episodes_in_buffer = len(state["data"]["filled"])
        self.lengths[:n] = self.storage[:n].lengths
        self.index = state["index"]
        set_generator_state(self.rng, state["rng"])
