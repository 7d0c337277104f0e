"""The multi-layer perceptron that critics and feed-forward agents are made of."""

from __future__ import annotations

from collections.abc import Iterable

import torch as th
import torch.nn.functional as F
from torch import nn

Layer = tuple[th.Tensor, th.Tensor | None]  # weight and bias of a linear layer
LARGE = 1 << 22  # multiplications in a layer from which oneDNN's layout is worth the copies


def feed_forward(x: th.Tensor, *layers: nn.Linear | Layer) -> th.Tensor:
    """Linear layers with ReLU between them, on the last axis of `x` `[..., I]`: `[..., O]`.

    Large products on a CPU are left to oneDNN: PyTorch's own come from MKL, which does not use
    AVX-512 on AMD's processors and takes twice as long there. The same float32 arithmetic but for
    the order of its sums; `torch.backends.mkldnn.flags(enabled=False)` goes without.
    """
    pairs = [(y.weight, y.bias) if isinstance(y, nn.Linear) else y for y in layers]
    rows = x.reshape(-1, x.shape[-1])
    on_onednn = (
        x.device.type == "cpu"
        and x.dtype == th.float32
        and th.backends.mkldnn.is_available()
        and th.backends.mkldnn.enabled
        and len(rows) * max(weight.numel() for weight, _ in pairs) >= LARGE
    )
    if on_onednn:
        rows = rows.to_mkldnn()
    for k, (weight, bias) in enumerate(pairs):
        rows = F.linear(rows.relu_() if k else rows, weight, bias)
    if on_onednn:
        rows = rows.to_dense()
    return rows.view(*x.shape[:-1], pairs[-1][0].shape[0])


class MLP(nn.Sequential):
    """Three linear layers, two of them hidden, with ReLU ("3-layer MLP", InSPO Appendix C.4)."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )

    def forward(self, x: th.Tensor) -> th.Tensor:
        """`[..., inputs]` -> `[..., outputs]`."""
        return feed_forward(x, *self.layers())

    def layers(self) -> list[nn.Linear]:
        return [layer for layer in self if isinstance(layer, nn.Linear)]


def each(networks: Iterable[MLP], x: th.Tensor) -> th.Tensor:
    """Every network, all of one shape, on rows of its own: `[k, M, inputs]` -> `[k, M, outputs]`.

    On a GPU a layer of all of them is one product; on a CPU the ones that `feed_forward` chooses.
    """
    if x.device.type == "cpu":
        return th.stack([network(rows) for network, rows in zip(networks, x)])
    return at_once(networks, x)


def at_once(networks: Iterable[MLP], x: th.Tensor) -> th.Tensor:
    """`each`, whatever the device, by one product for a layer of all networks."""
    x = x.transpose(1, 2)  # columns, so that the gradients of weights lie as the weights do
    for k, layers in enumerate(zip(*(network.layers() for network in networks))):
        weight = th.stack([layer.weight for layer in layers])
        bias = th.stack([layer.bias for layer in layers]).unsqueeze(2)
        x = th.baddbmm(bias, weight, x.relu() if k else x)
    return x.transpose(1, 2)
