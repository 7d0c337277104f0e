"""Batches of episodes that hold the keys of their scheme and refuse all others."""

from types import SimpleNamespace

import numpy as np
import torch as th


class EpisodeBatch:
    def __init__(
        self, scheme, groups, batch_size, max_seq_length, data=None, preprocess=None, device="cpu"
    ):
        self.scheme, self.groups, self.preprocess = scheme.copy(), groups, preprocess or {}
        self.batch_size, self.max_seq_length, self.device = batch_size, max_seq_length, device
        self.data = data or self._empty()

    def _empty(self):
        assert "filled" not in self.scheme
        for key, (new, (transform,)) in self.preprocess.items():
            vshape, dtype = transform.infer_output_info(None, None)
            self.scheme[new] = self.scheme[key] | {"vshape": vshape, "dtype": dtype}
        self.scheme["filled"] = {"vshape": (1,), "dtype": th.long}
        data = {}
        for key, info in self.scheme.items():
            vshape = info["vshape"]
            shape = (vshape,) if isinstance(vshape, int) else tuple(vshape)
            group = (self.groups[info["group"]],) if "group" in info else ()
            data[key] = th.zeros(
                self.batch_size,
                self.max_seq_length,
                *group,
                *shape,
                dtype=info.get("dtype", th.float32),
            )
        return SimpleNamespace(transition_data=data, episode_data={})

    def update(self, data, bs=slice(None), ts=slice(None), mark_filled=True):
        bs, ts = (slice(i, i + 1) if isinstance(i, int) else i for i in (bs, ts))
        target = self.data.transition_data
        for key, value in data.items():
            if key not in target:
                raise KeyError(f"{key} not found in transition or episode data")
            if isinstance(value, list):
                value = th.tensor(np.array(value), dtype=target[key].dtype)
            target[key][bs, ts] = value.view_as(target[key][bs, ts])
            if mark_filled:
                target["filled"][bs, ts] = 1
            if key in self.preprocess:
                new, (transform,) = self.preprocess[key]
                target[new][bs, ts] = transform.transform(target[key][bs, ts])

    def __getitem__(self, item):
        if isinstance(item, str):
            return self.data.transition_data[item]
        bs, ts = item if isinstance(item, tuple) else (item, slice(None))
        data = {key: value[bs, ts] for key, value in self.data.transition_data.items()}
        episodes, steps = data["filled"].shape[:2]
        data = SimpleNamespace(transition_data=data, episode_data={})
        return EpisodeBatch(self.scheme, self.groups, episodes, steps, data=data)

    def max_t_filled(self):
        return self["filled"].sum(1).max(0)[0]


class ReplayBuffer(EpisodeBatch):
    def __init__(self, scheme, groups, buffer_size, max_seq_length, preprocess=None):
        super().__init__(scheme, groups, buffer_size, max_seq_length, preprocess=preprocess)
        self.buffer_size, self.index, self.episodes_in_buffer = buffer_size, 0, 0

    def insert_episode_batch(self, batch):
        end = self.index + batch.batch_size
        assert end <= self.buffer_size
        bs, ts = slice(self.index, end), slice(0, batch.max_seq_length)
        self.update(batch.data.transition_data, bs, ts, mark_filled=False)
        self.episodes_in_buffer = max(self.episodes_in_buffer, end)
        self.index = end % self.buffer_size

    def can_sample(self, batch_size):
        return self.episodes_in_buffer >= batch_size

    def sample(self, batch_size):
        if self.episodes_in_buffer == batch_size:
            return self[:batch_size]
        return self[np.random.choice(self.episodes_in_buffer, batch_size, replace=False)]
