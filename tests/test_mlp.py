"""The linear layers that all networks but the recurrent ones are made of."""

import pytest
import torch as th
from torch import nn

from inspo.modules.mlp import LARGE, MLP, feed_forward


def plain(network: nn.Sequential, x: th.Tensor) -> th.Tensor:
    for layer in network:
        x = layer(x)
    return x


def gradients(network, output, x):
    return th.autograd.grad(output.square().mean(), [x, *network.parameters()])


@pytest.mark.parametrize("shape", [(1,), (4, 3), (LARGE // 64**2 + 1,), (90, 3, 5)])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_equals_its_layers_one_after_the_other(shape, dtype):
    th.manual_seed(0)
    network = MLP(7, 64, 3).to(dtype)
    x = th.randn(*shape, 7, dtype=dtype, requires_grad=True)
    before = x.detach().clone()
    ours, theirs = network(x), plain(network, x)
    assert th.equal(x, before)
    assert ours.shape == (*shape, 3) and ours.dtype == dtype
    th.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(network, ours, x), gradients(network, theirs, x)):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:TF32")  # what else the flag sets
def test_large_products_and_only_they_are_onednns(monkeypatch):
    calls = []
    to_mkldnn = th.Tensor.to_mkldnn
    monkeypatch.setattr(th.Tensor, "to_mkldnn", lambda x: calls.append(len(x)) or to_mkldnn(x))
    network, rows = MLP(7, 64, 3), LARGE // 64**2
    large, small = th.randn(rows, 7), th.randn(rows - 1, 7)
    network(small), network(large[:0])
    assert calls == []
    with th.backends.mkldnn.flags(enabled=False):
        off = network(large)
    assert calls == []
    th.testing.assert_close(network(large), off, rtol=1e-5, atol=1e-6)
    assert calls == [rows]


def test_weights_that_are_no_layers():
    head = nn.Linear(64, 3)
    x = th.randn(9, 64)
    th.testing.assert_close(feed_forward(x, (2 * head.weight, None)), 2 * x @ head.weight.T)


def test_state_dict_keeps_its_names():
    """Checkpoints of networks made of nn.Sequential can be read."""
    names = [f"{k}.{part}" for k in (0, 2, 4) for part in ("weight", "bias")]
    assert list(MLP(2, 3, 4).state_dict()) == names
