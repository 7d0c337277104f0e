"""What every learner shares: its step, its rates, its clipping."""

import pytest
import torch as th
from cases import descend_plainly, make_args, make_learner, random_batch

from inspo.learners.learner import optimise

RATES = {"lr": 0.0011, "critic_lr": 0.0023, "nu_lr": 0.0047, "alpha_lr": 0.0095}
OPTIMISERS = {  # name -> the key of the rate of each group of parameters
    "bc": {"policy": ["lr"]},
    "qmix": {"all": ["lr"]},
    "mappo": {"actor": ["lr"], "critic": ["critic_lr"]},
    "omar": {"critics": ["critic_lr"], "policy": ["lr"]},
    "cfcql": {"all": ["lr"]},
    "macql": {"all": ["lr"]},
    "omiga": {"policy": ["lr"], "q": ["lr"], "v": ["lr"]},
    "icq": {"critic": ["critic_lr"], "policy": ["lr"]},
    "alberdice": {"data": ["lr"]} | {f"agent_{i}": ["nu_lr", "lr"] for i in range(3)},
    "inspo": {f"critic_{i}": ["critic_lr"] for i in range(3)}
    | {f"policy_{i}": ["lr"] for i in range(3)}
    | {"alpha": ["alpha_lr"]},
}


def learner_of(algorithm, **overrides):
    args = make_args(algorithm, **overrides)
    th.manual_seed(0)
    return make_learner(args)[0], random_batch([4, 1, 6, 3], args)


@pytest.mark.parametrize("algorithm", OPTIMISERS)
def test_every_optimiser_has_the_rate_that_its_key_says(algorithm):
    rates = {key: rate for key, rate in RATES.items() if hasattr(make_args(algorithm), key)}
    learner, _ = learner_of(algorithm, **rates)
    found = {
        name: [group["lr"] for group in optimiser.param_groups]
        for name, optimiser in learner.optimisers.items()
    }
    wanted = {name: [RATES[k] for k in keys] for name, keys in OPTIMISERS[algorithm].items()}
    assert found == wanted
    kind = th.optim.RMSprop if algorithm == "icq" else th.optim.Adam
    assert {type(optimiser) for optimiser in learner.optimisers.values()} == {kind}


def test_the_smoothing_and_epsilon_of_icq_are_those_of_its_keys():
    learner, _ = learner_of("icq", optim_alpha=0.5, optim_eps=0.25)
    for optimiser in learner.optimisers.values():
        (group,) = optimiser.param_groups
        assert (group["alpha"], group["eps"]) == (0.5, 0.25)


@pytest.mark.parametrize(("clip", "step"), [(1.0, [0.6, 0.8]), (9.0, [3.0, 4.0])])
def test_a_step_is_clipped_to_the_largest_norm(clip, step):
    point = th.nn.Parameter(th.zeros(2))
    norm = optimise((point * th.tensor([-3.0, -4.0])).sum(), th.optim.SGD([point], 1.0), clip)
    assert norm.item() == 5.0
    assert point.tolist() == pytest.approx(step, rel=1e-5)


@pytest.mark.parametrize("algorithm", sorted(set(OPTIMISERS) - {"alberdice"}))
def test_no_step_of_a_learner_is_longer_than_the_clip(algorithm):
    """Plain descent with a rate of 1: the way gone is the norm of the clipped gradient."""
    clip = 1e-4
    one_step = {"critic_minibatch": 0 if algorithm == "inspo" else 100, "epochs": 1}
    known = {key: value for key, value in one_step.items() if hasattr(make_args(algorithm), key)}
    known |= {"alpha": 1.0} if algorithm == "omiga" else {}  # a gradient of V above the clip
    learner, batch = learner_of(algorithm, grad_norm_clip=clip, lr_decay="none", **known)
    learner.log_t = learner.args.t_max  # past a warm-up, and nothing to log
    descend_plainly(learner, 1.0)
    before = {
        name: [p.detach().clone() for group in optimiser.param_groups for p in group["params"]]
        for name, optimiser in learner.optimisers.items()
    }
    learner.train(batch, learner.args.t_max // 2, 8)
    for name, optimiser in learner.optimisers.items():
        if name == "alpha":
            continue  # one number, tuned otherwise
        after = [p for group in optimiser.param_groups for p in group["params"]]
        way = th.cat([(x - y).detach().flatten() for x, y in zip(after, before[name])]).norm()
        assert way.item() == pytest.approx(clip, rel=0.02), name
