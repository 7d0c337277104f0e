"""Retention over time and agents (Sun et al. 2023, arXiv 2307.08621), as Sable and Oryx use it."""

from __future__ import annotations

import math

import torch as th
import torch.nn.functional as F
from torch import nn

from inspo.components.packed import PackedEpisodes

CHUNK = 8  # steps whose tokens look at each other directly; before them stands a sum
QKV = tuple[th.Tensor, th.Tensor, th.Tensor]


def decay_rates(n_heads: int, scale: float) -> list[float]:
    """kappa of each head, by which what is kept shrinks from one step to the next.

    scale times 1 - 1/32 for the first head, 1 - 1/512 for the last, and between them evenly on the
    logarithm of the difference from 1.
    """
    first, last = math.log(1 / 32), math.log(1 / 512)
    between = [k / max(n_heads - 1, 1) for k in range(n_heads)]
    return [scale * (1 - math.exp(first + share * (last - first))) for share in between]


def retain_step(
    qkv: QKV, kept: th.Tensor, kappa: th.Tensor, causal: bool
) -> tuple[th.Tensor, th.Tensor]:
    """One step of the recurrent form, of K tokens at once.

    q, k, v `[B, H, K, D]`; kept `[B, H, D, D]`, the sum of what went before; kappa `[H]`. Returns
    what is read, `[B, H, K, D]`, and the new sum. Tokens read each other, or, if causal, those
    before them and themselves.
    """
    q, k, v = qkv
    kept = kept * kappa[:, None, None]
    within = q @ k.transpose(-1, -2)
    if causal:
        within = within.tril()
    return q @ kept + within @ v, kept + k.transpose(-1, -2) @ v


def retain(qkv: QKV, kappa: th.Tensor, causal: bool) -> th.Tensor:
    """All steps, chunk by chunk: what `retain_step` reads one step after the other.

        R_(t,i) = sum over t' <= t and tokens j of kappa^(t - t') (q_(t,i) . k_(t',j)) v_(t',j)

    with, if causal, j <= i where t' = t. q, k, v `[B, T, K, H, D]`, zeros in the padding. Returns
    the same shape.
    """
    n_steps, width = qkv[0].shape[1:3]
    size = min(CHUNK, n_steps)
    n_chunks = -(-n_steps // size)
    q, k, v = (_chunked(x, n_chunks, size) for x in qkv)  # [B, C, H, size * K, D]
    device, dtype = q.device, q.dtype
    step = th.arange(size, device=device)
    lag = step[:, None] - step[None, :]
    decay = th.where(lag >= 0, kappa[:, None, None] ** lag.clamp(min=0), 0.0).to(dtype)
    decay = decay.repeat_interleave(width, 1).repeat_interleave(width, 2)  # [H, size K, size K]
    read = ((q @ k.transpose(-1, -2)) * (decay.tril() if causal else decay)) @ v
    if n_chunks > 1:
        # What each chunk leaves behind, at its last step, and what stands before each.
        left = (kappa[:, None] ** (size - 1 - step)).repeat_interleave(width, 1).to(dtype)
        sums = (k * left.unsqueeze(-1)).transpose(-1, -2) @ v  # [B, C, H, D, D]
        chunk = th.arange(n_chunks, device=device)
        lag = chunk[:, None] - chunk[None, :] - 1
        carry = th.where(lag >= 0, kappa[:, None, None] ** (size * lag.clamp(min=0)), 0.0)
        before = th.einsum("hcd,bdhxy->bchxy", carry.to(dtype), sums)
        since = (kappa[:, None] ** (step + 1)).repeat_interleave(width, 1).to(dtype)
        read = read + (q @ before) * since.unsqueeze(-1)
    read = th.unflatten(read.transpose(2, 3), 2, (size, width))  # [B, C, size, K, H, D]
    return read.flatten(1, 2)[:, :n_steps]


def _chunked(x: th.Tensor, n_chunks: int, size: int) -> th.Tensor:
    """`[B, T, K, H, D]` -> `[B, C, H, size * K, D]`, zeros behind the last step."""
    x = F.pad(x, (0, 0) * 3 + (0, n_chunks * size - x.shape[1]))
    return th.unflatten(x, 1, (n_chunks, size)).permute(0, 1, 4, 2, 3, 5).flatten(3, 4)


class Retention(nn.Module):
    """Several heads, each normalised, gated by the key's token and mapped back.

        out = (swish(x_k W_g) * norm(retention(x_q W_q, x_k W_k, x_v W_v))) W_o

    Attributes: causal, whether tokens of a step see only those before them and themselves; apart,
    whether every token of a step is a sequence of its own and sees none of the others at all.
    """

    kappa: th.Tensor

    def __init__(self, width: int, n_heads: int, scale: float, causal: bool, apart: bool = False):
        super().__init__()
        self.n_heads, self.causal, self.apart = n_heads, causal, apart
        self.query, self.key, self.value, self.gate, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(5)
        )
        for layer in (self.query, self.key, self.value, self.gate, self.out):
            nn.init.normal_(layer.weight, std=width**-0.5)
        self.norm = nn.GroupNorm(n_heads, width)
        self.register_buffer("kappa", th.tensor(decay_rates(n_heads, scale)), persistent=False)

    def _heads(self, query: th.Tensor, key: th.Tensor) -> list[th.Tensor]:
        """`[..., W]` each -> q, k and v `[..., H, D]`."""
        parts = self.query(query), self.key(key), self.value(key)
        return [th.unflatten(part, -1, (self.n_heads, -1)) for part in parts]

    def _finish(self, read: th.Tensor, key: th.Tensor) -> th.Tensor:
        """read `[..., H, D]`, key `[..., W]` -> `[..., W]`."""
        flat = self.norm(read.reshape(-1, key.shape[-1])).view_as(key)
        finished: th.Tensor = self.out(F.silu(self.gate(key)) * flat)
        return finished

    def forward(self, query: th.Tensor, key: th.Tensor, packed: PackedEpisodes) -> th.Tensor:
        """Rows of whole episodes `[R, n, W]` each, the values being the keys -> `[R, n, W]`."""
        stacked = th.stack(self._heads(query, key), dim=1)  # [R, 3, n, H, D]
        n_agents = key.shape[1]
        q, k, v = packed.unpack(stacked).unbind(2)  # [B, T, n, H, D]
        if self.apart:  # an episode of one agent is a sequence
            q, k, v = (x.transpose(1, 2).flatten(0, 1).unsqueeze(2) for x in (q, k, v))
        read = retain((q, k, v), self.kappa, self.causal)
        if self.apart:
            read = th.unflatten(read.squeeze(2), 0, (-1, n_agents)).transpose(1, 2)
        return self._finish(packed.pack(read), key)

    def step(
        self, query: th.Tensor, key: th.Tensor, kept: th.Tensor, decays: bool = True
    ) -> tuple[th.Tensor, th.Tensor]:
        """One step: `[B, K, W]` each and kept `[B, H, D, D]` -> `[B, K, W]` and what is kept.

        If apart, kept is `[B, K, H, D, D]`. decays: False for a further token of the same step.
        """
        q, k, v = self._heads(query, key)  # [B, K, H, D]
        kappa = self.kappa if decays else th.ones_like(self.kappa)
        if self.apart:
            n_tokens = key.shape[1]
            parts = tuple(x.flatten(0, 1).unsqueeze(2) for x in (q, k, v))  # [B K, H, 1, D]
            read, kept = retain_step(parts, kept.flatten(0, 1), kappa, self.causal)  # type: ignore[arg-type]
            read, kept = read.squeeze(2), kept.unflatten(0, (-1, n_tokens))
            return self._finish(read.unflatten(0, (-1, n_tokens)), key), kept
        read, kept = retain_step(
            (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)), kept, kappa, self.causal
        )
        return self._finish(read.transpose(1, 2), key), kept
