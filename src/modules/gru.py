"""A GRU over the rows of whole episodes."""

from __future__ import annotations

from typing import Any

import torch as th
from torch import nn
from torch.nn.utils.rnn import PackedSequence


def unroll_gru(gru: nn.GRU, rows: th.Tensor, sizes: list[int]) -> th.Tensor:
    """The outputs `[R, H]` of one layer for `rows` `[R, I]`, which begin with nothing remembered.

    sizes: how many rows each step has, never more than the one before; row k of a step goes on
    from row k of the step before (`PackedEpisodes`).
    """
    if rows.device.type == "cpu":
        weights = gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0
        outputs: th.Tensor = _Unroll.apply(rows, *weights, sizes)  # type: ignore[no-untyped-call]
        return outputs
    return gru(PackedSequence(rows, th.tensor(sizes)))[0].data  # type: ignore[no-any-return]


class _Unroll(th.autograd.Function):
    """PyTorch's GRU on a CPU is a graph of some thirty small operations a step. Here a step has six
    on the way there and four on the way back; what does not go from step to step is one product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: th.Tensor,
        w_in: th.Tensor,
        w_hidden: th.Tensor,
        b_in: th.Tensor,
        b_hidden: th.Tensor,
        sizes: list[int],
    ) -> th.Tensor:
        width = w_hidden.shape[1]
        gates = th.addmm(b_in, x, w_in.T)  # [R, 3 H]: what becomes r, z and n
        recurrent = th.empty_like(gates)
        hidden = gates.new_empty(len(x), width)
        before = gates.new_zeros(sizes[0] if sizes else 0, width)
        steps = zip(gates.split(sizes), recurrent.split(sizes), hidden.split(sizes))
        for own, passed, after in steps:
            before = before[: len(own)]
            th.addmm(b_hidden, before, w_hidden.T, out=passed)
            reset_update, new = own.split([2 * width, width], dim=1)
            reset_update.add_(passed[:, : 2 * width]).sigmoid_()
            new.addcmul_(reset_update[:, :width], passed[:, 2 * width :]).tanh_()
            th.lerp(new, before, reset_update[:, width:], out=after)
            before = after
        ctx.save_for_backward(x, w_in, w_hidden, gates, recurrent[:, 2 * width :], hidden)
        ctx.sizes = sizes
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, w_in, w_hidden, gates, passed, hidden = ctx.saved_tensors
        sizes, width = ctx.sizes, w_hidden.shape[1]
        r, z, n = gates.split(width, dim=1)
        steps = hidden.split(sizes)
        start = hidden.new_zeros(sizes[0] if sizes else 0, width)
        before = th.cat([start, *(h[:k] for h, k in zip(steps, sizes[1:]))])  # [R, H]
        # What a unit of gradient in the output is in the recurrent product's part of n, and in r, z
        # and n before their nonlinearities.
        slopes = th.stack([r, 1 - r, z, th.ones_like(n)], dim=1)  # [R, 4, H]
        slopes[:, 3].addcmul_(n, n, value=-1).mul_(1 - z)
        slopes[:, 1].mul_(r).mul_(passed).mul_(slopes[:, 3])
        slopes[:, 0].mul_(slopes[:, 3])
        slopes[:, 2].mul_(1 - z).mul_(before - n)
        gradient = gradients[0].clone()
        flat = slopes.flatten(1)
        from_new = th.cat([w_hidden[2 * width :], w_hidden[: 2 * width]])  # n, r, z
        parts = (part.split(sizes) for part in (gradient, slopes, flat, z))
        earlier = None
        for of_step, slope, row, keep in reversed(list(zip(*parts))):
            if earlier is not None:
                of_step[: len(earlier)] += earlier
            slope.mul_(of_step.unsqueeze(1))
            earlier = th.addmm(of_step * keep, row[:, : 3 * width], from_new)
        into, across = flat[:, width:], flat[:, : 3 * width]  # r, z, n; and n, r, z
        w_across, b_across = across.T @ before, across.sum(0)
        return (
            into @ w_in,
            into.T @ x,
            th.cat([w_across[width:], w_across[:width]]),
            into.sum(0),
            th.cat([b_across[width:], b_across[:width]]),
            None,
        )
