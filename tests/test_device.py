"""Learners on a device that their host must not wait for.

No GPU is needed: on torch's device `meta`, which holds shapes and no values, whatever asks for a
value, or for a shape that depends on one, is an error. The last tests need one.
"""

import cases
import pytest
import torch as th
from test_learners import LEARNERS, every_algorithm
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inspo.components.packed import to_device
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.modules.gru import unroll_gru
from inspo.modules.mlp import MLP, at_once, each
from inspo.utils.rl_utils import draw

LENGTHS = [5, 2, 4]
SETTINGS = [  # of InSPO, beside its own
    {"ratio": "full", "joint_kl_coef": 1.0, "agent_order": "fixed", "tune_alpha": True},
    {"ratio": "adaptive", "blocks": 2, "advantage_critic": "current", "critic_minibatch": 4},
    {"agent": "mlp_ns", "resample": "weight", "td_lambda": 0.0, "turn_steps": 2},
]


class Watch(TorchDispatchMode):
    """Fails if an operation takes values of another device; counts the copies between devices."""

    copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, th.Tensor)]
        if len({x.device for x in tensors if x.dim()}) > 1:
            assert func.overloadpacket in (th.ops.aten._to_copy, th.ops.aten.copy_), func
            self.copies += 1
        return out


def build_on_meta(algorithm, **settings):
    """A learner without values, and a batch whose shapes its host knows."""
    with th.device("meta"):
        learner, _, args = cases.build(algorithm, critic_warmup=0.0, **settings)
        shape = args.state_shape, args.n_agents, args.n_actions, 8
        learner.others = learner.fitted = AutoregressivePolicy(*shape)
    cases.descend_plainly(learner)
    learner.log_t = 50  # nothing to log
    args.log_interval = 1000
    return learner, cases.random_batch(LENGTHS, args).to("meta")


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [(algorithm, {}) for algorithm in LEARNERS]
    + [("inspo", settings) for settings in SETTINGS]
    + [("alberdice", {"data_policies": "fitted"}), ("icq", {"support": 0.1})],
    ids=str,
)
def test_no_update_waits_for_its_device(algorithm, settings):
    learner, batch = build_on_meta(algorithm, **settings)
    with Watch() as watch:
        for _ in range(2):
            learner.train(batch, 50, 8)
    # Where rows lie, once a batch; AlberDICE: where episodes end, once an update.
    assert watch.copies == (3 if algorithm == "alberdice" else 1)
    assert learner.updates == 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.unique(),
        lambda x: bool((x > 0).all()),
        lambda x: x[th.tensor([0, 1])],
    ],
)
def test_what_would_wait_is_seen(ask):
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), Watch():
        ask(th.ones(3, device="meta"))


# What a GPU computes otherwise than a CPU


def test_products_of_all_networks_at_once_are_those_of_each():
    networks = nn.ModuleList(MLP(7, 5, 3) for _ in range(4)).double()
    x = th.randn(4, 11, 7, dtype=th.double, requires_grad=True)
    results = []
    for compute in (each, at_once):
        out = compute(networks, x)
        gradients = th.autograd.grad((out**2).sum(), [x, *networks.parameters()])
        results.append([out, *gradients])
    for found, expected in zip(*results):
        assert th.allclose(found, expected)


@pytest.mark.parametrize("sizes", [[3, 3, 2, 1], [4], [2, 2]])
def test_the_gru_and_its_gradients_are_those_of_torch(sizes):
    gru = nn.GRU(5, 6).double()
    rows = th.randn(sum(sizes), 5, dtype=th.double, requires_grad=True)
    weight = th.randn(sum(sizes), 6, dtype=th.double)
    results = []
    for out in (unroll_gru(gru, rows, sizes), gru(PackedSequence(rows, th.tensor(sizes)))[0].data):
        gradients = th.autograd.grad((out * weight).sum(), [rows, *gru.parameters()])
        results.append([out, *gradients])
    for found, expected in zip(*results):
        assert th.allclose(found, expected)


def test_draws_are_those_of_multinomial():
    probabilities = th.rand(50, 3, 7).softmax(-1)
    drawn = []
    for sample in (draw, lambda p: th.multinomial(p.flatten(0, 1), 1).view(50, 3)):
        th.manual_seed(4)
        drawn.append(sample(probabilities))
    assert th.equal(*drawn)


needs_gpu = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
DRAWING = {"macql", "alberdice"}  # draw on the device, so that a GPU's draws are others


@pytest.mark.cuda
@needs_gpu
@every_algorithm
def test_a_gpu_learns_what_a_cpu_learns(algorithm):
    """The same weights after three updates within rounding, with nothing drawn."""
    after = []
    for device in ("cpu", "cuda"):
        learner, logger, args = cases.build(
            algorithm, critic_warmup=0.0, critic_minibatch=1000, resample="weight"
        )
        cases.descend_plainly(learner, 0.02)
        if device == "cuda":
            learner.cuda()
        th.manual_seed(1)
        for k in range(3):
            learner.train(cases.random_batch(LENGTHS, args, seed=k).to(device), 50 + k, 8)
        after.append((learner, logger))
    (own, stats), (other, other_stats) = after
    assert all(x == x for values in other_stats.stats.values() for x in values)
    if algorithm not in DRAWING:
        for name, network in own.networks.items():
            for p, q in zip(network.parameters(), other.networks[name].parameters()):
                assert th.allclose(p, q.cpu(), atol=1e-4), name
        for key, values in stats.stats.items():
            assert values == pytest.approx(other_stats.stats[key], abs=1e-3, rel=1e-2), key


@pytest.mark.cuda
@needs_gpu
@every_algorithm
def test_no_update_waits_for_a_gpu(algorithm):
    learner, _, args = cases.build(algorithm, critic_warmup=0.0, log_interval=1000)
    learner.cuda()
    batch = cases.random_batch(LENGTHS, args).to("cuda")
    learner.train(batch, 50, 8)  # the first may wait: libraries begin, and it is logged
    assert to_device(batch.lengths, batch.device).is_cuda
    th.cuda.set_sync_debug_mode("error")
    try:
        learner.train(batch, 51, 8)
    finally:
        th.cuda.set_sync_debug_mode("default")
