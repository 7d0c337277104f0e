"""Draws batches of episodes from a dataset that lies on the training device, or on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.packed import to_device
from inspo.offline.offline_dataset import OfflineDataset, ends_terminated
from inspo.offline.scratch import SHARE_OF_FREE_MEMORY, is_on_disk
from inspo.utils.checkpoints import get_generator_state, set_generator_state
from inspo.utils.errors import DatasetError
from inspo.utils.memory import free_on

BLOCK = 16384  # rows that are looked at together
CONSTANT = 1e-9  # a smaller variance, relative to the squared mean, is rounding


class RowsElsewhere:
    """The rows of one key, `[rows, ...]`, on disk or in the host's memory; what is read goes to
    `device`.

    Indexed as the tensor that it stands for.
    """

    def __init__(self, array: np.ndarray, device: th.device):
        self._rows = th.from_numpy(array)
        self.device = device
        self.shape, self.dtype = self._rows.shape, self._rows.dtype
        self.moments: tuple[th.Tensor, th.Tensor] | None = None  # what is read is standardised by

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: th.Tensor) -> th.Tensor:
        """The rows of an index tensor, in its order."""
        found = to_device(self._rows[rows.cpu()].numpy(), self.device)
        return found if self.moments is None else (found - self.moments[0]) / self.moments[1]


class DrawnEpisodes(EpisodeBatch):
    """Episodes of a dataset, whose filled steps are read as they are asked for.

    `rows` takes them from the dataset at once; only who asks for `[B, T, ...]` gets padding.
    """

    def __init__(
        self,
        source: Mapping[str, th.Tensor | RowsElsewhere],
        first: np.ndarray,
        lengths: np.ndarray,
        ended: np.ndarray,
        device: th.device,
    ):
        """source: all rows of the dataset, by key; first: the first row of each episode, `[B]`."""
        filled = np.arange(lengths.max() + 1) <= lengths[:, None]
        data = {"filled": to_device(filled[..., None].astype(np.int64), device)}
        super().__init__(data, lengths, ended)
        self._source, self._first = source, first

    @cached_property
    def _places(self) -> tuple[th.Tensor, th.Tensor]:
        """The dataset's row that each packed row is, long `[R]`, on the host and the device."""
        places = self._first[self.packed.episode_of_rows] + self.packed.time_of_rows
        return th.from_numpy(places), to_device(places, self.device)

    def keys(self) -> Iterable[str]:
        return self.data.keys() | self._source.keys()

    def rows(self, key: str) -> th.Tensor:
        if key in self.data:
            return super().rows(key)
        source, (on_host, on_device) = self._source[key], self._places
        return source[on_host if isinstance(source, RowsElsewhere) else on_device]

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str) and item not in self.data:
            self.data[item] = self.packed.unpack(self.rows(item))
        return super().__getitem__(item)


class OfflineBuffer:
    """The filled rows of all episodes, `[rows, ...]` under each key, on one device.

    A dataset that was loaded with its rows on disk stays there, one that is too large for its GPU
    stays in the host's memory, and each batch is read as it is drawn; the same seed draws the same
    batches either way. What `add` attaches is on the device.

    Batches are trimmed to the longest of their episodes and padded with zeros. `add` attaches what
    has been computed once for every row (the behaviour policies' log-probabilities).
    """

    def __init__(self, dataset: OfflineDataset, seed: int, device: str | th.device = "cpu"):
        self.device = th.device(device)
        free = free_on(self.device)
        fits = free is None or dataset.nbytes <= SHARE_OF_FREE_MEMORY * free
        self.rows: dict[str, th.Tensor | RowsElsewhere] = {
            key: RowsElsewhere(array, self.device)
            if is_on_disk(array) or not fits
            else th.from_numpy(array).to(self.device)
            for key, array in dataset.arrays.items()
        }
        self.lengths = np.asarray(dataset.lengths)
        self.offsets = np.asarray(dataset.offsets)
        self.ended = ends_terminated(dataset.arrays["terminated"], self.lengths)
        self.originals = dataset.equal.originals  # `[E]`, see `EqualEpisodes`
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, key: str, values: th.Tensor) -> None:
        """Attach `values` `[rows, ...]`; batches carry them from now on."""
        if len(values) != self.offsets[-1]:
            raise ValueError(f"{key}: {len(values)} rows for a dataset of {self.offsets[-1]}")
        self.rows[key] = values.to(self.device)

    def moments(self, key: str) -> tuple[th.Tensor, th.Tensor]:
        """Mean and deviation of each of the last dimension's entries over all rows, `[D]` each.

        The deviation of what does not vary is 1.
        """
        total = square = th.zeros((), dtype=th.double)
        blocks = th.arange(int(self.offsets[-1])).split(BLOCK)
        for block in blocks:
            rows = self.rows[key][block.to(self.device)].double().flatten(0, -2)
            total, square = total + rows.sum(0), square + rows.square().sum(0)
        count = self.rows[key].shape[:-1].numel()
        mean = total / count
        variance = square / count - mean.square()
        std = th.where(variance > CONSTANT * mean.square().clamp(min=1.0), variance.sqrt(), 1.0)
        return mean.float(), std.float()

    def standardise(self, key: str) -> None:
        """Batches carry the rows of `key` less their mean, over their deviation, from now on."""
        mean, std = self.moments(key)
        rows = self.rows[key]
        if isinstance(rows, RowsElsewhere):
            rows.moments = mean, std
        else:
            self.rows[key] = (rows - mean) / std

    def sample(self, batch_size: int) -> EpisodeBatch:
        """`batch_size` episodes, drawn without replacement."""
        if not 0 < batch_size <= len(self):
            raise DatasetError(
                f"batch_size is {batch_size}, but the dataset holds {len(self)} episodes. "
                f"Set batch_size to a number from 1 to {len(self)}."
            )
        return self.batch(self.rng.choice(len(self), batch_size, replace=False))

    def batch(self, episodes: Sequence[int] | np.ndarray) -> EpisodeBatch:
        """The given episodes, `[len(episodes), longest + 1, ...]`."""
        chosen = np.asarray(episodes)
        of_chosen = self.offsets[chosen], self.lengths[chosen], self.ended[chosen]
        return DrawnEpisodes(self.rows, *of_chosen, self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"rng": get_generator_state(self.rng)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_generator_state(self.rng, state["rng"])
