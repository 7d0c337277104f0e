"""Estimates from logged episodes, against exact returns, closed forms and loops over episodes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cases
import numpy as np
import pytest
import torch as th

from inspo import evaluate
from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.estimation import finite, importance, stationary
from inspo.estimation.estimates import Estimate, Evaluator, PolicyEstimate, estimate, select
from inspo.estimation.features import Features
from inspo.estimation.fqe import LinearFQE
from inspo.estimation.logged import Logged
from inspo.estimation.policies import Policy, find_policies, load_policies, load_policy, soften
from inspo.estimation.resampling import Resamples, interval
from inspo.offline import behaviour, write_dataset
from inspo.offline.game_data import make_dataset
from inspo.offline.offline_dataset import DatasetMetadata, OfflineDataset
from inspo.tabular.matrix_games import payoff_tensor
from inspo.utils.checkpoints import save_checkpoint
from inspo.utils.config import load_config
from inspo.utils.errors import CheckpointError, DatasetError
from inspo.utils.settings import Settings

# Only what makes tables is read of it: the probabilities are given.
ANYBODY = Policy("somebody", Path("x"), 0, "bc", 0, False, 0.0, Settings({}), None)


def everywhere(data: Logged, policies) -> th.Tensor:
    """The same probabilities `[n, A]` in every row."""
    return th.tensor(np.array(policies), dtype=th.float32).expand(len(data.state), -1, -1)


def numbers(evaluator: Evaluator, probs: th.Tensor) -> dict[str, Estimate]:
    return evaluator.evaluate_probabilities(probs, ANYBODY, 0.0).estimates


# ---- matrix games --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def games():
    """Evaluators of the two games whose data hold all joint actions."""
    kinds = ["fqe_joint", "fqe_additive", "fqe_agents", "model"]
    return {
        name: Evaluator(make_dataset("matrix", name, quality), kinds)
        for name, quality in (("xor", "c"), ("m_ne", "imbalanced"))
    }


@pytest.mark.parametrize("name", ["xor", "m_ne"])
def test_joint_estimates_are_the_exact_return(games, name):
    payoff, rng = payoff_tensor(name), np.random.default_rng(1)
    for _ in range(3):
        one, two = rng.dirichlet(np.ones(len(payoff)), size=2)
        found = numbers(games[name], everywhere(games[name].data, [one, two]))
        assert found["model"].value == pytest.approx(one @ payoff @ two, abs=1e-5)
        assert found["fqe_joint"].value == pytest.approx(one @ payoff @ two, abs=0.2)


def test_additive_estimate_is_the_additive_projection(games):
    payoff, data = payoff_tensor("xor"), games["xor"].data
    a, b = np.indices((2, 2)).reshape(2, -1)
    design = np.stack([np.ones(4), a, b], axis=1)  # uniform data: plain least squares
    projected = (design @ np.linalg.lstsq(design, payoff.reshape(-1))[0]).reshape(2, 2)
    one, two = np.array([0.9, 0.1]), np.array([0.8, 0.2])
    found = numbers(games["xor"], everywhere(data, [one, two]))
    assert abs(one @ payoff @ two - one @ projected @ two) > 0.2  # else it would show nothing
    assert found["fqe_additive"].value == pytest.approx(one @ projected @ two, abs=0.01)


def test_estimate_of_one_agent_leaves_the_other_to_the_data(games):
    payoff, data = payoff_tensor("m_ne"), games["m_ne"].data
    mu, pi = np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.2, 0.7])
    found = numbers(games["m_ne"], everywhere(data, [pi, pi]))["fqe_agents"]
    assert found.facts["agents"] == pytest.approx([pi @ payoff @ mu, mu @ payoff @ pi], abs=0.3)


# ---- games with several steps --------------------------------------------------------------------


def random_game(n_episodes: int, seed: int, limit: int = 4):
    """(dataset, exact return of a policy `[S, n, A]`) of a random game of two agents.

    The state, one-hot, is one of three; play ends with probability 0.2, or at the limit.
    """
    game = np.random.default_rng(7)
    kernel = game.dirichlet(np.ones(3), size=(3, 2, 2))
    reward = game.normal(size=(3, 2, 2))
    rng, mu = np.random.default_rng(seed), np.array([0.6, 0.4])
    rows = {key: [] for key in ("state", "actions", "reward", "terminated")}
    lengths = []
    for _ in range(n_episodes):
        s = rng.integers(3)
        for t in range(limit):
            a = rng.choice(2, size=2, p=mu)
            ended = rng.random() < 0.2
            add(rows, s, a, reward[s, a[0], a[1]], ended)
            s = rng.choice(3, p=kernel[s, a[0], a[1]])
            if ended or t + 1 == limit:
                break
        lengths.append(t + 1)
        add(rows, s, [0, 0], 0.0, False)
    arrays = {key: np.array(values) for key, values in rows.items()}
    state = np.eye(3, dtype=np.float32)[arrays["state"]]
    arrays |= {
        "state": state,
        "obs": np.repeat(state[:, None], 2, axis=1),
        "actions": arrays["actions"].astype(np.int64)[..., None],
        "avail_actions": np.ones((len(state), 2, 2), dtype=np.int32),
        "reward": arrays["reward"].astype(np.float32)[:, None],
        "terminated": arrays["terminated"].astype(np.uint8)[:, None],
    }
    facts = DatasetMetadata("toy", "random", "mu", "toy 1", "test", 2, 2, 3, 3, limit)

    def exact(policy: np.ndarray, gamma: float = 1.0) -> float:
        joint = np.einsum("sa,sb->sab", policy[:, 0], policy[:, 1])
        v = np.zeros(3)
        for _ in range(limit):
            v = (joint * (reward + gamma * 0.8 * kernel @ v)).sum((1, 2))
        return float(v.mean())

    return OfflineDataset.build(arrays, np.array(lengths), facts), exact


def add(rows, state, actions, reward, terminated):
    for key, value in zip(rows, (state, list(actions), reward, terminated)):
        rows[key].append(value)


def in_states(data: Logged, policy: np.ndarray) -> th.Tensor:
    """The probabilities `[S, n, A]` of each row's state."""
    return th.tensor(policy, dtype=th.float32)[data.state.argmax(-1)]


ONE, TWO = [0.2, 0.8], [0.8, 0.2]
POLICY = np.array([[ONE, TWO], [ONE, TWO], [ONE, ONE]])
MU = np.broadcast_to([0.6, 0.4], (3, 2, 2))


class TableFeatures(Features):
    """One for each (step, state, joint action): nothing is approximated, nothing to be learnt."""

    n_shared = 0

    def __init__(self, data: Logged):
        super().__init__()
        self.data = data

    def taken(self, which):
        onehot = th.nn.functional.one_hot(self.data.actions[which], 2).float()
        return self.expected(self.data.now[which], onehot)

    def expected(self, rows, probs):
        data = self.data
        step = (data.time[rows] * data.limit).round().long()
        step = th.nn.functional.one_hot(step, data.limit + 1).float()
        phi = th.einsum("mt,ms,ma,mb->mtsab", step, data.state[rows], probs[:, 0], probs[:, 1])
        return phi.flatten(1).unsqueeze(0)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_fitted_q_in_a_table_is_the_exact_return(gamma):
    dataset, exact = random_game(4000, seed=0)
    data = Logged.of(dataset)
    fqe = LinearFQE(TableFeatures(data), data, Resamples(data.groups), gamma)
    assert abs(exact(POLICY, gamma) - exact(MU, gamma)) > 0.3
    fit = fqe.evaluate(in_states(data, POLICY))
    assert fit.members[0] == pytest.approx(exact(POLICY, gamma), abs=0.1)
    q, v = fqe.values(in_states(data, POLICY), fit.weights)
    assert v[0, data.first].mean() == pytest.approx(fit.members[0], abs=1e-4)
    last = data.time[data.then] == 1  # of the steps that the limit allows
    after = data.reward + gamma * data.goes_on * v[0, data.then]
    assert (after - q[0]).mean() == pytest.approx(0.0, abs=1e-3)  # Bellman's equation
    assert (data.reward - q[0])[last].mean() == pytest.approx(0.0, abs=1e-3)


def test_estimates_of_a_random_game():
    dataset, exact = random_game(2000, seed=0)
    evaluator = Evaluator(dataset, ["fqe_joint", "fqe_additive", "model"])
    found = numbers(evaluator, in_states(evaluator.data, POLICY))
    for name in ("fqe_joint", "model"):
        assert found[name].value == pytest.approx(exact(POLICY), abs=0.15)
    mean = dataset.metadata.return_mean
    found = numbers(evaluator, in_states(evaluator.data, MU))  # of mu, the mean of the data
    for one in found.values():
        assert one.value == pytest.approx(mean, abs=0.06) and one.low < mean < one.high


@pytest.mark.parametrize("kind", ["table", "model"])
def test_intervals_cover_at_their_level(kind):
    hits, trials = 0, 20
    for seed in range(trials):
        dataset, exact = random_game(300, seed=100 + seed)
        data = Logged.of(dataset)
        resamples, probs = Resamples(data.groups), in_states(data, POLICY)
        if kind == "table":
            draws = LinearFQE(TableFeatures(data), data, resamples).evaluate(probs).draws
        else:
            counts = finite.count(data)
            draws, _ = finite.evaluate(counts, data, probs, resamples.episodes)
        low, high = interval(draws)
        hits += low <= exact(POLICY) <= high
    assert hits >= 17  # 19 expected at 95 %; fewer than 17 by chance in 1 of 60


# ---- importance sampling -------------------------------------------------------------------------


def random_episodes(seed: int = 0, e: int = 6, t: int = 4):
    """log-ratios, rewards, Q and V, all zero behind each episode's end."""
    rng = np.random.default_rng(seed)
    mask = np.arange(t) < rng.integers(1, t + 1, size=(e, 1))
    return (*(rng.normal(size=(e, t)) * mask for _ in range(4)), mask)


def test_importance_sampling_by_loops():
    log_ratio, reward, q, v, mask = random_episodes()
    counts = np.ones((1, len(reward)))
    step = [
        sum(math.exp(log_ratio[e, : t + 1].sum()) * reward[e, t] for t in range(mask[e].sum()))
        for e in range(len(reward))
    ]
    assert importance.per_decision(log_ratio, reward, counts)[0] == pytest.approx(np.mean(step))
    w = [math.exp(0.5 * log_ratio[e].sum()) for e in range(len(reward))]
    value = sum(w[e] * reward[e].sum() for e in range(len(reward))) / sum(w)
    assert importance.weighted(log_ratio, reward, counts, 0.5)[0] == pytest.approx(value)
    assert importance.effective(log_ratio, 0.5) == pytest.approx(
        sum(w) ** 2 / sum(x * x for x in w)
    )
    robust = 0.0
    for e in range(len(reward)):
        rho = 1.0
        for t in range(mask[e].sum()):
            robust += rho * v[e, t]
            rho *= math.exp(log_ratio[e, t])
            robust += rho * (reward[e, t] - q[e, t])
    found = importance.doubly_robust(log_ratio, reward, q, v, counts, normalise=False)
    assert found[0] == pytest.approx(robust / len(reward))


def test_draws_are_the_estimates_of_the_drawn_episodes():
    log_ratio, reward, q, v, _ = random_episodes(1)
    drawn = np.array([0, 0, 3, 4, 4, 4])
    counts = np.bincount(drawn, minlength=6)[None].astype(float)
    once = np.ones((1, 6))
    for of in (importance.per_decision, importance.weighted):
        found = of(log_ratio, reward, counts)
        assert found == pytest.approx(of(log_ratio[drawn], reward[drawn], once))
    found = importance.doubly_robust(log_ratio, reward, q, v, counts)
    assert found == pytest.approx(
        importance.doubly_robust(log_ratio[drawn], reward[drawn], q[drawn], v[drawn], once)
    )


def test_ratio_of_mu_is_one_and_all_give_the_mean():
    _, reward, q, _, _ = random_episodes(2)
    none, counts = np.zeros_like(reward), np.ones((1, len(reward)))
    mean = reward.sum(1).mean()
    assert importance.per_decision(none, reward, counts)[0] == pytest.approx(mean)
    assert importance.weighted(none, reward, counts)[0] == pytest.approx(mean)
    assert importance.effective(none) == pytest.approx(len(reward))
    # Values that fit the data exactly are corrected by nothing, others are corrected fully.
    for normalise in (True, False):
        shifted = importance.doubly_robust(none, reward, q, q, counts, normalise)
        assert shifted[0] == pytest.approx(mean)


def exact_others(i, state, log_mu, avail, actions) -> th.Tensor:
    """log mu of the other agent's action: beside an A it plays A or B, beside a B always A."""
    own, other = actions[:, i], actions[:, 1 - i]
    return th.where(own == 1, (other == 0).float(), 0.5).clamp(min=1e-10).log()


def exact_behaviour(buffer, *_args) -> behaviour.Behaviour:
    """Of XOR b: each agent plays A with 2/3; beside an A the other plays A or B, beside a B, A."""
    own = th.tensor([2 / 3, 1 / 3]).log().expand(len(buffer.rows["state"]), 2, 2)
    actions = buffer.rows["actions"][..., 0]
    others = th.where(actions == 1, 1.0, 0.5).log()  # of the other's action, given one's own
    return behaviour.Behaviour({}, exact_others, own, others, {})


def test_importance_sampling_knows_that_agents_act_together(monkeypatch):
    """XOR b: the product of the agents' policies is not the policy of the data."""
    monkeypatch.setattr(behaviour, "obtain", exact_behaviour)
    dataset = make_dataset("matrix", "xor", "b")
    evaluator = Evaluator(dataset, ["is", "wis", "dr"])
    policies = np.array([[0.5, 0.5], [0.9, 0.1]])
    found = evaluator.evaluate_probabilities(everywhere(evaluator.data, policies), ANYBODY, 0.0)
    # A A pays 0, A B and B A pay 1, B B is not in the data: its -2 cannot be known.
    assert found.estimates["is"].value == pytest.approx(0.5 * 0.1 + 0.5 * 0.9)
    assert found.estimates["wis"].value == pytest.approx(0.5 / 0.95)
    assert found.estimates["wis"].facts["curve"][0]["value"] == pytest.approx(
        dataset.metadata.return_mean
    )
    assert found.support == pytest.approx(0.95, abs=0.02)
    greedy = evaluator.evaluate_probabilities(
        everywhere(evaluator.data, np.eye(2)[[0, 0]]), ANYBODY, 0.0
    )
    assert "epsilon 0.05" in greedy.warnings[0]
    assert greedy.estimates["is"].value > 0  # an epsilon of 0 would leave A A alone


def test_what_the_data_never_show_is_not_chosen(monkeypatch):
    """XOR b: each agent's B is worth more to a sum over agents, and (B, B) pays -2."""
    monkeypatch.setattr(behaviour, "obtain", exact_behaviour)
    evaluator = Evaluator(make_dataset("matrix", "xor", "b"), ["fqe_additive", "wis"])
    both, one = (everywhere(evaluator.data, np.eye(2)[agents]) for agents in ([1, 1], [0, 1]))
    results = [evaluator.evaluate_probabilities(p, ANYBODY, 0.0) for p in (both, one)]
    assert [r.support for r in results] == [0.0, 1.0]
    values = [r.estimates["fqe_additive"].value for r in results]
    assert values[0] > values[1]
    choice = select(results, "fqe_additive")
    assert choice.order == [1, 0] and choice.probability == [1.0, 0.0]
    assert any("extrapolation" in line for line in results[0].warnings)


def test_ratios_of_occupancies_by_loops():
    g = th.Generator().manual_seed(0)
    e, log_pi, log_mu = (th.randn(9, 3, generator=g) for _ in range(3))
    joint = th.randn(9, generator=g)
    weights = stationary.log_weights(e, 0.5, log_pi, log_mu, joint).exp().double().numpy()
    reward, episode = np.arange(9.0), np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    counts = np.array([[1, 1, 1], [2, 0, 1]])
    found = stationary.evaluate(weights, reward, episode, counts, 3.0)
    for draw, row in enumerate(counts):
        means = []
        for i in range(3):
            paid = total = 0.0
            for m in range(9):
                others = sum(log_pi[m, j].item() for j in range(3) if j != i)
                ratio = others - (joint[m].item() - log_mu[m, i].item())
                w = row[episode[m]] * math.exp(ratio + e[m, i].item() / 0.5)
                paid, total = paid + w * reward[m], total + w
            means.append(paid / total)
        assert found[draw] == pytest.approx(3.0 * np.mean(means), rel=1e-5)


def test_ratios_come_with_alberdices_runs_alone(tmp_path):
    """alpha falls from 4 to 1 over the run: half way it is 2; e_i are those of the learner."""
    learner, _, args = cases.build("alberdice", alpha_start=4.0, alpha_end=1.0)
    learner.save_models(tmp_path)
    data = SimpleNamespace(
        state=th.randn(6, args.state_shape), now=th.tensor([0, 2, 3]),
        actions=th.tensor([[0, 1, 2], [3, 2, 1], [1, 1, 0]]),
    )  # fmt: skip
    policy = replace(ANYBODY, algorithm="alberdice", folder=tmp_path, settings=args, step=50)
    e, alpha = stationary.advantages(policy, data)
    assert alpha == pytest.approx(2.0)
    for m, row in enumerate(data.now):
        for i in range(3):
            wanted = learner.advantages[i](data.state[row][None])[0, data.actions[m, i]]
            assert e[m, i].item() == pytest.approx(wanted.item(), abs=1e-6)
    assert stationary.advantages(ANYBODY, data) is None


# ---- data, policies, choice ----------------------------------------------------------------------


def test_copies_are_drawn_together():
    once, _ = random_game(200, seed=5)  # of several lengths, so that not all are equal
    state = once.arrays["state"] + np.random.default_rng(0).random((once.n_rows, 1))
    once = replace(once, arrays=once.arrays | {"state": state.astype(np.float32)})
    twice = Logged.of(once.select(np.tile(np.arange(200), 2)))
    assert twice.n_groups == 200 and (twice.groups[:200] == twice.groups[200:]).all()
    resamples = Resamples(twice.groups)
    assert (resamples.episodes[:, :200] == resamples.episodes[:, 200:]).all()
    assert (resamples.block[:200] == resamples.block[200:]).all()


def test_one_distinct_episode_is_an_error():
    dataset, _ = random_game(3, seed=5)
    with pytest.raises(DatasetError, match="at least two distinct"):
        Logged.of(dataset.select([1, 1, 1]))


def save_policy(folder: Path, facts: DatasetMetadata, seed: int = 0, **overrides) -> Path:
    """A checkpoint of a random policy, written as a run writes it."""
    values = load_config([
        "--config=inspo", f"--env-config={facts.env}_offline", "with", f"map_name={facts.map_name}",
    ]).values | overrides  # fmt: skip
    args = Settings(values, facts.env_info())
    th.manual_seed(seed)
    mac = mac_REGISTRY[args.mac](build_scheme(facts.env_info()), {}, args)
    with th.no_grad():
        for parameter in mac.parameters():
            parameter.mul_(3)
    text = {"alg": "inspo", "env": facts.env, "map_name": facts.map_name, "config": values}
    return save_checkpoint(folder, 10, {"agent.th": mac.agent.state_dict()}, text)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder with two policies of XOR, the data, their file)."""
    folder = tmp_path_factory.mktemp("runs")
    dataset = make_dataset("matrix", "xor", "c")
    for seed in range(2):
        save_policy(folder / f"seed{seed}" / "models" / "run", dataset.metadata, seed)
    write_dataset(folder / "xor_c.h5", dataset)
    return folder, dataset, folder / "xor_c.h5"


def test_estimate_and_select(saved):
    folder, dataset, _ = saved
    found = find_policies([folder])
    assert len(found) == 2
    results = estimate(found, dataset, ["model"])
    assert [result.name for result in results] == ["seed0/run/10", "seed1/run/10"]
    for path, result in zip(found, results):
        mac = load_policy(path, dataset.metadata).mac
        mac.init_hidden(1)
        rows = {key: th.as_tensor(x)[None] for key, x in dataset.arrays.items()}
        one, two = (
            mac.agent(
                mac._assemble(rows["obs"][0, :1], rows["actions"][0, :1] * 0 - 1).flatten(0, 1),
                mac.agent.init_hidden().expand(2, -1),
            )[0]
            .softmax(-1)
            .double()
            .detach()
            .numpy()
        )
        exact = one @ payoff_tensor("xor") @ two
        assert result.estimates["model"].value == pytest.approx(exact, abs=1e-4)
    choice = select(results, "model")
    values = [results[k].estimates["model"].value for k in choice.order]
    assert values == sorted(values, reverse=True) and sum(choice.probability) == pytest.approx(1)


def test_doubt_of_a_choice():
    draws = np.array([[1.0, 2.0, 1.0, 1.0], [0.0, 3.0, 0.0, 0.0]])
    results = [
        PolicyEstimate(name, "", 0, "bc", 0, "greedy", 1.0, estimates={"x": Estimate(v, 0, 0, d)})
        for name, v, d in zip("ab", (1.25, 0.75), draws)
    ]
    choice = select(results, "x")
    assert choice.order == [0, 1] and choice.probability == [0.75, 0.25] and choice.doubt == 0.25


def test_policy_is_estimated_as_it_is_played(saved):
    folder, dataset, _ = saved
    path = find_policies([folder])[0]
    assert load_policy(path, dataset.metadata).way == "sampled"  # as the tests of matrix games
    assert load_policy(path, dataset.metadata, "greedy").way == "greedy"
    avail = th.tensor([[1, 1, 0]])
    soft = soften(th.tensor([[1.0, 0.0, 0.0]]), avail, 0.2)
    assert soft.flatten().tolist() == pytest.approx([0.9, 0.1, 0.0])


@pytest.mark.parametrize("other", ["map", "shape"])
def test_checkpoint_of_another_task_is_an_error(tmp_path, saved, other):
    _, dataset, _ = saved
    name = "m_ne" if other == "map" else "xor"
    facts = make_dataset("matrix", name, "balanced" if name == "m_ne" else "a").metadata
    if other == "shape":
        facts = replace(facts, obs_shape=5)
    path = save_policy(tmp_path / "run", facts)
    with pytest.raises(CheckpointError, match="m_ne.*xor" if other == "map" else "does not fit"):
        load_policies([path], dataset.metadata)


def test_command_writes_what_it_says(saved, tmp_path, capsys):
    folder, _, data = saved
    status = evaluate.main([
        str(folder), "--data", str(data), "--out", str(tmp_path), "--estimators", "model",
        "fqe_joint", "--play", "64",
    ])  # fmt: skip
    shown = capsys.readouterr().out
    assert status == 0 and "best by model" in shown
    content = json.loads((tmp_path / "estimates.json").read_text())
    assert content["choice"]["ranking"][0] in shown
    for policy in content["policies"]:
        model = policy["estimates"]["model"]["value"]
        error = policy["played_standard_error"]
        assert abs(policy["played"] - model) < 5 * error + 1e-6
        assert policy["estimates"]["fqe_joint"]["value"] == pytest.approx(model, abs=0.05)
    assert len((tmp_path / "estimates.csv").read_text().splitlines()) == 3
    assert (tmp_path / "estimates.png").stat().st_size > 5000
    assert "| seed0/run/10" in (tmp_path / "estimates.md").read_text()


def test_command_names_an_unknown_estimator(saved, capsys):
    folder, _, data = saved
    status = evaluate.main([str(folder), "--data", str(data), "--estimators", "fqe_jont"])
    assert status == 2 and "Did you mean 'fqe_joint'" in capsys.readouterr().err
