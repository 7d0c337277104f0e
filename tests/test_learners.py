"""What every learner keeps to: one test for each property, over all that are registered."""

import copy
import math

import cases
import pytest
import torch as th

from inspo.learners import REGISTRY
from inspo.learners.learner import optimise
from inspo.utils.errors import TrainingFailure

RATES = {"lr": 0.0011, "critic_lr": 0.0023, "nu_lr": 0.0047, "alpha_lr": 0.0095, "data_lr": 0.0007}
OPTIMISERS = {  # name -> the key of the rate of each group of parameters
    "bc": {"policy": ["lr"]},
    "qmix": {"all": ["lr"]},
    "mappo": {"actor": ["lr"], "critic": ["critic_lr"]},
    "omar": {"critics": ["critic_lr"], "policy": ["lr"]},
    "cfcql": {"all": ["lr"]},
    "macql": {"all": ["lr"]},
    "omiga": {"policy": ["lr"], "q": ["lr"], "v": ["lr"]},
    "icq": {"critic": ["critic_lr"], "policy": ["lr"]},
    "comadice": {"policy": ["lr"], "q": ["lr"], "v": ["lr"]},
    "oryx": {"all": ["lr"]},
    "iql": {"critics": ["critic_lr"], "value": ["critic_lr"], "policy": ["lr"]},
    "td3bc": {"critics": ["critic_lr"], "policy": ["lr"]},
    "idqn_cql": {"all": ["lr"]},
    "alberdice": {"data": ["data_lr"]}
    | {f"agent_{i}": ["nu_lr", "lr", "data_lr"] for i in range(3)},
    "inspo": {f"critic_{i}": ["critic_lr"] for i in range(3)}
    | {f"policy_{i}": ["lr"] for i in range(3)}
    | {"alpha": ["alpha_lr"]},
}
LEARNERS = list(OPTIMISERS)  # the other algorithms are one of these with other keys
OF_VALUES = {"qmix", "cfcql", "macql", "idqn_cql"}  # the others train policies
assert {cases.make_args(name).learner for name in LEARNERS} == set(REGISTRY)
every_algorithm = pytest.mark.parametrize("algorithm", LEARNERS)


def keys_of(algorithm, **values):
    """Those of `values` that the algorithm knows."""
    known = vars(cases.make_args(algorithm))
    return {key: value for key, value in values.items() if key in known}


def apart(algorithm):
    """A network without memory for each agent, or for all of them where values are mixed."""
    return "oryx" if algorithm == "oryx" else "mlp" if algorithm in OF_VALUES else "mlp_ns"


def last_layers(agent):
    """Those whose outputs are an agent's policy or values."""
    return [agent.policy[-1], agent.value[-1]] if hasattr(agent, "policy") else [agent.net[-1]]


# Steps: their rates, their clipping


@every_algorithm
def test_every_optimiser_has_the_rate_that_its_key_says(algorithm):
    icq = keys_of(algorithm, optim_alpha=0.5, optim_eps=0.25)
    learner, _, _ = cases.build(algorithm, **keys_of(algorithm, **RATES), **icq)
    found = {
        name: [group["lr"] for group in optimiser.param_groups]
        for name, optimiser in learner.optimisers.items()
    }
    wanted = {name: [RATES[k] for k in keys] for name, keys in OPTIMISERS[algorithm].items()}
    assert found == wanted
    kind = th.optim.RMSprop if algorithm == "icq" else th.optim.Adam
    assert {type(optimiser) for optimiser in learner.optimisers.values()} == {kind}
    groups = [group for o in learner.optimisers.values() for group in o.param_groups]
    assert not icq or all((g["alpha"], g["eps"]) == (0.5, 0.25) for g in groups)


@pytest.mark.parametrize("decay", ["none", "cosine"])
@pytest.mark.parametrize("algorithm", [a for a in LEARNERS if keys_of(a, lr_decay=0)])
def test_rates_fall_to_zero_or_stay(algorithm, decay):
    rates = keys_of(algorithm, lr=0.002, critic_lr=0.004)
    learner, _, args = cases.build(algorithm, lr_decay=decay, t_max=100, **rates)
    for t_env, share in ((0, 1.0), (50, 0.5), (100, 0.0)):
        learner.train(cases.random_batch(cases.LENGTHS, args), t_env, 8)
        found = [o.param_groups[0]["lr"] for o in learner.optimisers.values()]
        share = 1.0 if decay == "none" else share
        assert found == pytest.approx([rate * share for rate in rates.values()], abs=1e-8)


@pytest.mark.parametrize(("clip", "step"), [(1.0, [0.6, 0.8]), (9.0, [3.0, 4.0])])
def test_a_step_is_clipped_to_the_largest_norm(clip, step):
    point = th.nn.Parameter(th.zeros(2))
    other = th.nn.Parameter(th.zeros(1))
    losses = th.stack([(point * th.tensor([-3.0, -4.0])).sum(), 0.5 * other.sum()])
    norms = optimise(losses, [th.optim.SGD([p], 1.0) for p in (point, other)], clip)
    assert norms.tolist() == [5.0, 0.5]
    assert point.tolist() == pytest.approx(step, rel=1e-5)
    assert other.tolist() == [-0.5]  # each by its own norm


@pytest.mark.parametrize("algorithm", sorted(set(LEARNERS) - {"alberdice"}))
def test_no_step_of_a_learner_is_longer_than_the_clip(algorithm):
    """Plain descent with a rate of 1: the way gone is the norm of the clipped gradient."""
    clip = 1e-4
    one_step = {"critic_minibatch": 0 if algorithm == "inspo" else 100, "epochs": 1}
    known = keys_of(algorithm, **one_step)
    known |= {"alpha": 1.0} if algorithm == "omiga" else {}  # a gradient of V above the clip
    args = cases.make_args(algorithm, grad_norm_clip=clip, lr_decay="none", **known)
    learner, _ = cases.make_learner(args)
    learner.log_t = args.t_max  # past a warm-up, and nothing to log
    cases.descend_plainly(learner, 1.0)
    before = {
        name: [p.detach().clone() for group in optimiser.param_groups for p in group["params"]]
        for name, optimiser in learner.optimisers.items()
    }
    learner.train(cases.random_batch(cases.LENGTHS, args), args.t_max // 2, 8)
    for name, optimiser in learner.optimisers.items():
        if name == "alpha":
            continue  # one number, tuned otherwise
        after = [p for group in optimiser.param_groups for p in group["params"]]
        way = th.cat([(x - y).detach().flatten() for x, y in zip(after, before[name])]).norm()
        assert way.item() == pytest.approx(clip, rel=0.02), name


# Targets and checkpoints


@pytest.mark.parametrize(
    ("algorithm", "settings", "copied"),
    [
        ("cfcql", {"target_update_interval": 3}, [0, 0, 1, 0, 0, 1, 0]),
        ("macql", {"target_update_interval": 3}, [0, 0, 1, 0, 0, 1, 0]),
        ("omar", {"target_update_interval": 2}, [0, 1, 0, 1, 0, 1, 0]),
        # 8 episodes an update: at 24, and then at 44 at the earliest
        ("qmix", {"target_update_interval": 20}, [0, 0, 1, 0, 0, 1, 0]),
        # 14 transitions make 3 steps of the critic
        ("icq", {"target_update_interval": 7, "critic_minibatch": 5}, [0, 0, 1, 0, 0, 1, 0]),
    ],
)
def test_targets_are_copied_after_so_many_steps(algorithm, settings, copied):
    learner, _, args = cases.build(algorithm, **settings)
    batch, nets = cases.random_batch(cases.LENGTHS, args), learner.networks
    targets = [name for name in nets if name.startswith("target_")]
    assert len(targets) == 2
    for k, expected in enumerate(copied, start=1):
        source = dict(nets)
        if algorithm == "omar":  # copied before the actor's step
            source["agent"] = copy.deepcopy(nets["agent"])
        learner.train(batch, 0, 8 * k)
        for name in targets:
            assert (
                cases.same_weights(nets[name], source[name.removeprefix("target_")]) == expected
            ), name


@every_algorithm
def test_state_is_saved_whole(algorithm, tmp_path):
    """With counters that are in the middle of an interval of targets."""
    drawing = {"tune_alpha": True, "resample": "draw", "agent_order": "random"}
    interval = {"target_update_interval": 3, "critic_minibatch": 5, "critic_warmup": 0.5}
    settings = keys_of(algorithm, **drawing, **interval)
    learner, _, args = cases.build(algorithm, **settings)
    batch = cases.random_batch(cases.LENGTHS, args)
    for k in range(4):
        learner.train(batch, 50 + k, k)
    learner.save_models(tmp_path)
    twin, _ = cases.make_learner(args)
    twin.load_models(tmp_path)
    for part in (learner, twin):
        th.manual_seed(2)
        for k in range(4, 7):
            part.train(batch, 50 + k, k)
    for name, network in learner.networks.items():
        other = twin.networks[name].state_dict()
        assert all(th.equal(v, other[k]) for k, v in network.state_dict().items()), name
    assert (twin.updates, twin.log_t) == (learner.updates, learner.log_t)
    args.lr = 0.25  # rates are the configuration's, not the file's
    other, _ = cases.make_learner(args)
    other.load_models(tmp_path)
    assert 0.25 in [g["lr"] for o in other.optimisers.values() for g in o.param_groups]


# What is not finite


@pytest.mark.parametrize("cause", ["lr", "rewards"])
@every_algorithm
def test_training_stops_at_the_update_that_is_not_finite(algorithm, cause, tmp_path):
    if (algorithm, cause) == ("bc", "lr"):
        return  # its weights become large, and stay finite
    rates = dict.fromkeys(("lr", "critic_lr", "data_lr"), 1e30)
    rates = keys_of(algorithm, **rates) if cause == "lr" else {}
    learner, _, args = cases.build(algorithm, **rates)
    batch = cases.random_batch(cases.LENGTHS, args)
    if cause == "rewards":
        batch["reward"][:] = 1e38 * batch["reward"].sign()
        if algorithm == "bc":  # which reads no rewards
            batch["obs"][:] = float("inf")
    with pytest.raises(TrainingFailure) as caught:
        for k in range(50):
            learner.train(batch, 50, 8 * k)
    update, _, message = str(caught.value).partition(": the step of '")
    assert int(update.removeprefix("update ")) == learner.updates + 1 <= (50 if rates else 1)
    assert message.partition("'")[0] in learner.optimisers
    assert ("rewards" in message) == (cause == "rewards")


def test_where_looking_waits_for_the_device_it_is_put_off(monkeypatch):
    """As on a GPU: the first bad update is named when it is asked for, which saving always does."""
    learner, _, args = cases.build("qmix", lr=1e30)
    checks = []
    with monkeypatch.context() as patch:
        patch.setattr(learner, "check_steps", lambda: checks.append(1))
        for k in range(5):
            learner.train(cases.random_batch(cases.LENGTHS, args), 50, 8 * k)
    assert checks
    with pytest.raises(TrainingFailure, match="update 2: the step of 'all'"):
        learner.check_finite()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    learner, _, _ = cases.build("bc")
    learner.save_models(tmp_path)
    next(learner.mac.parameters()).data[0] = float("inf")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TrainingFailure, match=r"update 0: networks\.agent\.\S+ is not finite"):
        learner.save_models(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# What must not matter


@every_algorithm
def test_padding_changes_nothing(algorithm):
    """Thirty more steps of rubbish: the same statistics and the same weights afterwards."""
    args = cases.make_args(
        algorithm, resample="weight", td_lambda=0.8, critic_warmup=0.0, log_interval=20
    )
    if algorithm == "inspo":
        args.agent_order = "fixed"
    batch = cases.random_batch(cases.LENGTHS, args)
    learner, _ = cases.make_learner(args)
    cases.descend_plainly(learner)
    results = []
    for pad in (0, 30):
        twin = copy.deepcopy(learner)
        th.manual_seed(1)
        for t_env in (50, 60, 70):  # the second lies within the interval of the log
            twin.train(cases.padded(batch, pad), t_env, 8)
        weights = {k: v for net in twin.networks.values() for k, v in net.state_dict().items()}
        results.append((twin.logger.stats, weights))
    (stats, weights), (other_stats, other_weights) = results
    assert stats.keys() == other_stats.keys() and max(map(len, stats.values())) == 2
    for key, values in stats.items():
        assert all(map(math.isfinite, values))
        assert values == pytest.approx(other_stats[key], abs=1e-5, rel=1e-4), key
    for key, value in weights.items():
        assert th.allclose(value, other_weights[key], atol=1e-5), key
    # A matrix game played once: nothing to normalise by.
    learner.train(cases.random_batch([1], args, terminated=[True]), 90, 8)
    assert all(p.isfinite().all() for n in learner.networks.values() for p in n.parameters())


@every_algorithm
def test_unavailable_actions_do_not_matter(algorithm):
    """What the networks say of an action that nobody could take is moved: the losses stay."""
    stats = []
    for rise in (0.0, 5.0):
        learner, logger, args = cases.build(algorithm, agent=apart(algorithm))
        batch = cases.random_batch(cases.LENGTHS, args)
        batch["avail_actions"][..., 2] = 0
        batch["actions"][batch["actions"] == 2] = 1
        batch["avail_actions"].scatter_(-1, batch["actions"], 1)
        batch["behaviour_log_probs"][..., 2] = -1e10
        with th.no_grad():
            for agent in getattr(learner.mac.agent, "agents", [learner.mac.agent]):
                for layer in last_layers(agent):
                    layer.bias[2] += rise
        th.manual_seed(1)
        learner.train(batch, 50, 8)
        stats.append(logger.stats)
    assert stats[0] == stats[1] and any("loss" in key for key in stats[0])


# Oryx has one network for all.
@pytest.mark.parametrize("algorithm", sorted(set(LEARNERS) - OF_VALUES - {"oryx"}))
def test_an_agent_without_a_choice_learns_nothing(algorithm):
    learner, logger, args = cases.build(
        algorithm, agent="mlp_ns", **keys_of(algorithm, critic_warmup=0)
    )
    batch = cases.without_choice(cases.random_batch(cases.LENGTHS, args), 1)
    before = copy.deepcopy(learner.mac.agent.agents)
    for t_env in (50, 51, 52):
        learner.train(batch, t_env, 8)
    for i, agent in enumerate(learner.mac.agent.agents):
        assert cases.same_weights(agent, before[i]) == (i == 1)
    assert all(math.isfinite(v) for values in logger.stats.values() for v in values)
