"""Behaviour policies: they find the policies that made the data, row by row, once."""

import copy
import random

import numpy as np
import pytest
import test_dataset
import torch as th
from cases import log_softmax_loop, play_agent

from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.learners.ratios import others_log_ratio
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.offline import OfflineDataset, behaviour
from inspo.offline.buffer import OfflineBuffer
from inspo.utils.config import load_config
from inspo.utils.phases import Phase
from inspo.utils.settings import Settings

XOR_B = np.array([[1, 1], [1, 0]]) / 3
POLICY = np.array([[[0.7, 0.2, 0.1], [0.3, 0.0, 0.7], [0.1, 0.8, 0.1]],
                   [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5]]])  # fmt: skip
"""[agent, context, action]: zeros are unavailable; agent 1 has no choice in context 1."""


def make_dataset(state, actions, avail, n_actions):
    """Episodes `[E, T, ...]` of equal length, one more row of the same shape at the end."""
    e, t, n = actions.shape
    arrays = {
        "state": state.reshape(e * t, -1).astype(np.float32),
        "obs": np.repeat(state[:, :, None], n, axis=2).reshape(e * t, n, -1).astype(np.float32),
        "actions": actions.reshape(e * t, n, 1).astype(np.int64),
        "avail_actions": avail.reshape(e * t, n, n_actions).astype(np.int32),
        "reward": np.zeros((e * t, 1), dtype=np.float32),
        "terminated": np.zeros((e * t, 1), dtype=np.uint8),
    }
    width = arrays["state"].shape[-1]
    sizes = {"n_agents": n, "n_actions": n_actions, "state_shape": width, "obs_shape": width}
    metadata = test_dataset.metadata(episode_limit=t - 1, **sizes)
    return OfflineDataset.build(arrays, np.full(e, t - 1), metadata, None)


def known_policy_data(episodes=300, steps=4, seed=0):
    """Independent agents that play POLICY in contexts drawn at random (one-hot)."""
    rng = np.random.default_rng(seed)
    context = rng.integers(3, size=(episodes, steps + 1))
    probs = POLICY[:, context].transpose(1, 2, 0, 3)  # [E, T, n, A]
    drawn = (rng.random(probs.shape[:3])[..., None] > probs.cumsum(-1)).sum(-1)
    return make_dataset(np.eye(3)[context], drawn, probs > 0, 3), context, probs


def xor_b_data(copies=100):
    joint = np.argwhere(XOR_B > 0)
    actions = np.repeat(joint, copies, axis=0)
    actions = np.random.default_rng(0).permutation(actions)[:, None]
    actions = np.concatenate([actions, np.zeros_like(actions)], axis=1)
    return make_dataset(
        np.ones((*actions.shape[:2], 1)), actions, np.ones((*actions.shape, 2)), 2
    ), actions[:, 0]


def make_settings(info, behaviour, **changes) -> Settings:
    command = ["--config=inspo", "--env-config=matrix_offline", "with", "use_presets=False"]
    values = load_config(command).values
    values = values | {"seed": 3, "hidden_dim": 8} | changes
    values["behaviour"] = values["behaviour"] | behaviour
    return Settings(values).with_facts(device="cpu", **info)


def fit(dataset, folder, seed=3, log=print, hidden_dim=16, check=lambda: None, phase=Phase, **keys):
    """(behaviour, buffer, mac)."""
    info = dataset.metadata.env_info()
    few = {
        "updates": 300, "lr": 0.01, "eval_interval": 50, "held_out": 0.1, "patience": 10,
        "others_updates": 300, "others_lr": 0.01, "others_hidden_dim": 16,
    }  # fmt: skip
    network = {"agent": "mlp_ns", "obs_last_action": False, "hidden_dim": hidden_dim}
    args = make_settings(info, few | keys, seed=seed, **network)
    mac = mac_REGISTRY[args.mac](build_scheme(info), {"agents": args.n_agents}, args)
    buffer = OfflineBuffer(dataset, 0)
    content = dataset.metadata.content_hash
    return behaviour.obtain(buffer, mac, args, content, folder, log, check, phase), buffer, mac


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    dataset, context, probs = known_policy_data()
    return (*fit(dataset, tmp_path_factory.mktemp("cache")), dataset, context, probs)


def test_cloning_finds_the_policy_of_the_data(known):
    fitted, _, _, dataset, context, probs = known
    log_mu = fitted.log_probs.double().exp().numpy().reshape(probs.shape)
    assert (log_mu[probs == 0] == 0).all()
    assert np.allclose(log_mu.sum(-1), 1, atol=1e-6)
    # the best that any fit can do is what the contexts' counts say
    is_step = dataset.is_transition().reshape(context.shape)
    actions = dataset.arrays["actions"].reshape(*context.shape, 2)
    for i in range(2):
        for c in range(3):
            taken = actions[..., i][is_step & (context == c)]
            counts = np.bincount(taken, minlength=3) / len(taken)
            assert np.abs(log_mu[context == c][:, i] - counts).max() < 0.06
    nll = -np.log(np.take_along_axis(log_mu, actions[..., None], -1))[is_step].mean()
    entropy = -(POLICY * np.log(np.where(POLICY > 0, POLICY, 1))).sum(-1).mean()
    assert nll == pytest.approx(entropy, abs=0.03)
    assert fitted.report["behaviour_nll"] == pytest.approx(entropy, abs=0.1)  # 120 rows


def test_ratio_is_one_at_mu_where_agents_are_independent(known):
    fitted, _, _, dataset, _, _ = known
    now = th.from_numpy(dataset.is_transition())
    actions = th.from_numpy(dataset.arrays["actions"])
    log_mu = fitted.log_probs.gather(-1, actions).squeeze(-1)[now]
    for i in range(2):
        rho = others_log_ratio(log_mu, fitted.log_prob_others[now, i], i).exp()
        assert rho.mean().item() == pytest.approx(1.0, abs=0.03)
        assert rho.std().item() < 0.15


def test_correlated_data_are_learnt_exactly_and_the_product_cannot(tmp_path):
    dataset, played = xor_b_data()
    fitted, *_ = fit(dataset, tmp_path, held_out=0.2)
    report = fitted.report
    conditional = {0: XOR_B / XOR_B.sum(1, keepdims=True), 1: XOR_B / XOR_B.sum(0, keepdims=True)}
    found = fitted.log_prob_others[::2].exp().numpy()  # the rows of the transitions
    for i in range(2):
        exact = conditional[i][played[:, 0], played[:, 1]]
        assert np.abs(found[:, i] - exact).max() < 0.06
    exact_nll = -(XOR_B[XOR_B > 0] * np.log(conditional[0][XOR_B > 0])).sum()
    product_nll = -(np.log(2 / 3) * 2 / 3 + np.log(1 / 3) / 3)
    assert report["others_nll_product"] == pytest.approx(product_nll, abs=0.05)
    assert report["others_nll"] == pytest.approx(exact_nll, abs=0.05)
    # E_D[rho] at pi = mu is the mass of the product that the data cover: 1 - 1/3 * 1/3
    log_mu = fitted.log_probs[::2].gather(-1, th.from_numpy(played)[..., None]).squeeze(-1)
    for i in range(2):
        rho = others_log_ratio(log_mu, fitted.log_prob_others[::2][:, i], i).exp()
        assert rho.mean().item() == pytest.approx(8 / 9, abs=0.02)

    product, *_ = fit(dataset, tmp_path, held_out=0.2, others="product")
    for i in range(2):
        rho = others_log_ratio(log_mu, product.log_prob_others[::2][:, i], i).exp()
        assert th.allclose(rho, th.ones_like(rho), atol=1e-5)


def test_without_others_there_are_the_individual_policies_alone(tmp_path):
    dataset, _ = xor_b_data(20)
    said, fits = [], []
    for place in ("fitted", "read from the cache"):
        alone, buffer, _ = fit(dataset, tmp_path, log=said.append, updates=20, others="none")
        fits.append(alone.log_probs)
        assert alone.others is None and alone.log_prob_others is None, place
        assert set(alone.report) == {"behaviour_nll"}
        alone.annotate(buffer)
        batch = buffer.batch([0])
        assert "behaviour_log_prob_others" not in batch.data
        assert th.equal(batch["behaviour_log_probs"][0], alone.log_probs[:2])
    assert th.equal(*fits)
    assert sum("read from" in line for line in said) == 1


def test_log_prob_others_is_a_loop_over_predecessors():
    th.manual_seed(0)
    n, a, s, m = 4, 3, 5, 6
    model = AutoregressivePolicy(s, n, a, 7)
    th.nn.init.normal_(model.out.weight)
    state, actions = th.randn(m, s), th.randint(a, (m, n))
    avail = (th.rand(m, n, a) < 0.6).int().scatter_(-1, actions[..., None], 1)
    log_mu = th.randn(m, n, a).masked_fill(avail == 0, -1e10).log_softmax(-1)
    for i in range(n):
        found = model(i, state, log_mu, avail, actions)
        for row in range(m):
            total = 0.0
            for j in range(n):
                if j == i:
                    continue
                x = model.state(state[row]) + model.of_i.weight[i] + model.of_j.weight[j]
                x = x + model.action_i.weight[actions[row, i]]
                for k in range(j):  # predecessors in the order of the agents, i aside
                    if k != i:
                        x = x + model.predecessors.weight[k * a + actions[row, k]]
                extra = model.out(model.hidden(x.relu()).relu())
                total += log_softmax_loop(log_mu[row, j] + extra, avail[row, j])[actions[row, j]]
            assert found[row].item() == pytest.approx(float(total.detach()), abs=1e-4)


@pytest.mark.parametrize("block", [3, 256])
def test_annotated_rows_are_in_the_datasets_order(monkeypatch, tmp_path, block):
    """Episodes of different lengths and a recurrent policy, against one episode at a time."""
    dataset = test_dataset.make_dataset([3, 1, 5, 2, 4])
    dataset.arrays["avail_actions"][:] = 1
    info, lengths, buffer = dataset.metadata.env_info(), dataset.lengths, OfflineBuffer(dataset, 0)
    few = {"updates": 3, "eval_interval": 1, "others_updates": 3, "batch_size": 2}
    args = make_settings(info, few)
    mac = mac_REGISTRY[args.mac](build_scheme(info), {"agents": 3}, args)
    monkeypatch.setattr(behaviour, "BLOCK", block)
    fitted = behaviour.obtain(buffer, mac, args, "hash", tmp_path, print, lambda: None)
    mac.agent.load_state_dict(fitted.agent)
    start = 0
    for e, length in enumerate(lengths):
        episode = buffer.batch([e])
        for i in range(3):
            outputs = play_agent(mac.agent.agents[i], episode, args, i)
            for t in range(length + 1):
                expected = log_softmax_loop(outputs[0, t], th.ones(5))
                assert th.allclose(fitted.log_probs[start + t, i], expected, atol=1e-5)
        start += length + 1
    fitted.annotate(buffer)
    batch = buffer.batch([2, 1])
    first = int((lengths[:2] + 1).sum())
    assert th.equal(batch["behaviour_log_probs"][0], fitted.log_probs[first : first + 6])
    assert th.equal(
        batch["behaviour_log_prob_others"][0], fitted.log_prob_others[first : first + 6]
    )


# The cache


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist()


def test_the_cache_is_used_and_leaves_no_trace(tmp_path, monkeypatch):
    dataset, _ = xor_b_data(20)
    few = {"updates": 20, "others_updates": 20}
    fits = []
    real = behaviour._Fit
    monkeypatch.setattr(behaviour, "_Fit", lambda *a: fits.append(1) or real(*a))

    def obtain(**changes):
        th.manual_seed(11)
        fitted, _, mac = fit(dataset, tmp_path, **(few | changes))
        weights = copy.deepcopy(mac.agent.state_dict())
        return fitted, weights, random_states()

    fresh, weights, after = obtain()
    cached, weights_cached, after_cached = obtain()
    assert len(fits) == 1
    assert after == after_cached  # whether it was full cannot be seen in what is drawn next
    assert all(th.equal(weights[k], weights_cached[k]) for k in weights)
    assert th.equal(fresh.log_probs, cached.log_probs)
    assert th.equal(fresh.log_prob_others, cached.log_prob_others)
    assert fresh.report == cached.report
    assert all(th.equal(fresh.agent[k], cached.agent[k]) for k in fresh.agent)

    for changes in ({"seed": 4}, {"lr": 0.02}, {"others": "product"}, {"hidden_dim": 8}):
        other, _, _ = obtain(**changes)
        assert not th.equal(other.log_probs, fresh.log_probs) or changes == {"others": "product"}
    obtain(seed=4)
    assert len(fits) == 5 and not list(tmp_path.glob("*.tmp"))


def test_one_seed_gives_one_fit_and_a_broken_cache_is_replaced(tmp_path):
    dataset, _ = xor_b_data(20)
    few = {"updates": 20, "others_updates": 60}
    first, *_ = fit(dataset, tmp_path / "a", **few)
    th.manual_seed(5)  # what was drawn before does not matter
    second, *_ = fit(dataset, tmp_path / "b", **few)
    assert first.report["others_nll"] < first.report["others_nll_product"]  # it has learnt
    assert th.equal(first.log_probs, second.log_probs)
    assert th.equal(first.log_prob_others, second.log_prob_others)
    (path,) = (tmp_path / "a").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    said = []
    third, *_ = fit(dataset, tmp_path / "a", log=said.append, **few)
    assert th.equal(first.log_probs, third.log_probs)
    assert f"{path} cannot be read" in said[0]


def test_early_stopping_keeps_the_best():
    network = th.nn.Linear(1, 1)
    stopping = behaviour.EarlyStopping(network, patience=2)
    verdicts = []
    for step, loss in enumerate([3.0, 1.0, 2.0, 0.5, 0.5, 0.6]):
        th.nn.init.constant_(network.weight, step)
        verdicts.append(stopping.observe(loss))
    assert verdicts == [False, False, False, False, False, True]
    assert stopping.restore() == 0.5
    assert network.weight.item() == 3


def test_a_stop_is_heard_while_fitting_and_says_that_nothing_is_saved(tmp_path):
    calls, said = [], []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(xor_b_data(20)[0], tmp_path, log=said.append, check=check)
    assert len(calls) == 3
    assert "nothing of the fit is saved" in said[-1]
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    """torch raises RuntimeError where the disk is full."""

    def fail(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed")

    monkeypatch.setattr(th, "save", fail)
    said = []
    fitted, *_ = fit(xor_b_data(20)[0], tmp_path, log=said.append, updates=5, others_updates=5)
    assert fitted.log_probs.isfinite().any()
    assert said[-1].startswith("warning: ") and "cannot be written" in said[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("episodes", "held_out"), [(1, 0.0), (1, 1.0), (2, 0.1)])
def test_few_episodes_and_any_share_leave_something_on_both_sides(tmp_path, episodes, held_out):
    dataset = xor_b_data()[0].select(range(episodes))
    fitted, *_ = fit(dataset, tmp_path, held_out=held_out, updates=5, others_updates=5)
    assert np.isfinite(fitted.report["behaviour_nll"])
