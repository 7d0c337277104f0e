"""Oryx: retention in both forms, losses by loops, acting in turn, and where it ends."""

import copy
import math

import cases
import pytest
import torch as th

from inspo.controllers.basic_controller import BasicMAC
from inspo.modules.retention import CHUNK, Retention, decay_rates, retain, retain_step
from inspo.utils.errors import ConfigError

FORMS = pytest.mark.parametrize("decentralised", [False, True], ids=["central", "decentralised"])


def nudge(network) -> None:
    """Weights that differ everywhere, biases and gains too."""
    with th.no_grad():
        for p in network.parameters():
            p.add_(0.3 * th.randn(p.shape))


# Retention


def test_decay_rates_are_the_published_ones():
    assert decay_rates(4, 0.5) == pytest.approx([0.484, 0.494, 0.498, 0.499], abs=5e-4)
    assert decay_rates(1, 1.0) == pytest.approx([1 - 1 / 32])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_steps", [1, CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 3])
def test_chunks_steps_and_the_definition_agree(causal, n_steps):
    th.manual_seed(n_steps)
    n_episodes, n_tokens, n_heads, width = 2, 3, 2, 4
    shape = (n_episodes, n_steps, n_tokens, n_heads, width)
    q, k, v = (th.randn(shape) for _ in range(3))
    kappa = th.tensor([0.3, 0.95])
    found = retain((q, k, v), kappa, causal)
    kept = th.zeros(n_episodes, n_heads, width, width)
    for t in range(n_steps):
        step = tuple(x[:, t].transpose(1, 2) for x in (q, k, v))
        read, kept = retain_step(step, kept, kappa, causal)
        assert th.allclose(found[:, t], read.transpose(1, 2), atol=1e-5)
    for b, i, h in ((0, 0, 0), (1, 1, 1), (0, 2, 1)):
        t, expected = n_steps - 1, th.zeros(width)
        for u in range(n_steps):
            for j in range(n_tokens):
                if u == t and causal and j > i:
                    continue
                score = float(q[b, t, i, h] @ k[b, u, j, h])
                expected += kappa[h] ** (t - u) * score * v[b, u, j, h]
        assert th.allclose(found[b, t, i, h], expected, atol=1e-4)


@pytest.mark.parametrize(("causal", "apart"), [(False, False), (True, False), (False, True)])
def test_a_layer_played_step_by_step_reads_the_same(causal, apart):
    th.manual_seed(0)
    n, width, heads = 3, 8, 2
    layer = Retention(width, heads, 0.9, causal, apart)
    nudge(layer)
    batch = cases.random_batch([4, 1, 11])
    packed = batch.packed
    query, key = th.randn(2, len(packed.time), n, width)
    found = packed.unpack(layer(query, key, packed))
    query, key = packed.unpack(query), packed.unpack(key)
    shape = (3, n, heads, 4, 4) if apart else (3, heads, 4, 4)
    kept = th.zeros(shape)
    for t in range(batch.max_seq_length):
        read, kept = layer.step(query[:, t], key[:, t], kept)
        for e in range(3):
            if batch["filled"][e, t]:
                assert th.allclose(found[e, t], read[e], atol=1e-5)


# The network


def retention(**values):
    return cases.SimpleNamespace(
        **({"heads": 4, "decay_scale": 1.0, "feed_forward": True} | values)
    )


def network_of(**settings):
    args = cases.make_args("oryx", **({"retention": retention()} | settings))
    th.manual_seed(0)
    mac = cases.make_mac(args)
    nudge(mac.agent)
    return mac, args


@FORMS
def test_acting_sees_what_learning_sees(decentralised):
    mac, args = network_of(decentralised=decentralised)
    batch = cases.random_batch([4, 1, 11, 3], args)
    packed = batch.packed
    unrolled = packed.unpack(mac.unroll(batch))
    mac.init_hidden(batch.batch_size)
    for t in range(batch.max_seq_length):
        probs = mac.forward(batch, t)
        for e in range(batch.batch_size):
            for i in range(3) if batch["filled"][e, t] else ():
                avail = batch["avail_actions"][e, t, i]
                expected = cases.log_softmax_loop(unrolled[e, t, i].detach(), avail).exp()
                assert th.allclose(probs[e, i], expected, atol=1e-5)


@FORMS
def test_agents_in_another_place_with_the_order_that_undoes_it_are_the_same(decentralised):
    mac, args = network_of(decentralised=decentralised)
    batch = cases.random_batch(cases.LENGTHS, args)
    packed = batch.packed
    inputs, actions = mac.inputs(batch), packed.pack(batch["actions"]).squeeze(-1)
    order, moved = th.tensor([2, 0, 1]), th.tensor([1, 2, 0])
    before = mac.sequence.unroll(inputs, actions, packed, order)
    # Agent j stands at the place where `moved` has it, and the order names it by that.
    places = moved.argsort()[order]
    after = mac.sequence.unroll(inputs[:, moved], actions[:, moved], packed, places)
    for old, new in zip(before, after):
        assert th.allclose(old[:, moved], new, atol=1e-5)
    q = mac.sequence.values(inputs, actions, packed, order)
    assert th.equal(q, before[1])


@FORMS
def test_who_sees_what(decentralised):
    """Whose outputs move when agent 1's observation, or its action, is another in step 2."""
    wide = {"hidden_dim": 32, "retention": retention(heads=1)}  # little is lost in the norms
    mac, args = network_of(decentralised=decentralised, **wide)
    batch = cases.random_batch([6, 6], args)
    packed = batch.packed
    inputs, actions = mac.inputs(batch), packed.pack(batch["actions"]).squeeze(-1)
    order = th.tensor([0, 1, 2])

    def play(inputs, actions):
        outputs = mac.sequence.unroll(inputs, actions, packed, order)
        return [packed.unpack(x.detach()) for x in outputs]

    def moved(inputs, actions):
        changes = zip(play(inputs, actions), before)
        return [(new - old).abs().sum(-1)[0] > 1e-6 for new, old in changes]  # [T, n] each

    before = play(inputs, actions)
    row = packed.index.tolist().index(2)  # step 2 of episode 0
    other = inputs.clone()
    other[row, 1, :4] += 1.0
    logits, q = moved(other, actions)
    later, agents = th.arange(7)[:, None] >= 2, th.arange(3)
    assert th.equal(logits, later & (agents == 1) if decentralised else later.expand(-1, 3))
    assert th.equal(q, logits)
    other = actions.clone()
    other[row, 1] = (other[row, 1] + 1) % 4
    logits, q = moved(inputs, other)
    after = (th.arange(7)[:, None] > 2) | ((th.arange(7)[:, None] == 2) & (agents == 2))
    assert th.equal(q, after)
    assert th.equal(logits, th.zeros_like(after) if decentralised else after)


def test_the_published_network_has_no_feed_forward_part():
    mac, _ = network_of(
        retention=cases.SimpleNamespace(heads=2, decay_scale=0.5, feed_forward=False)
    )
    assert mac.sequence.encoder_unit is None and mac.sequence.decoder_unit is None
    with pytest.raises(ConfigError, match=r"hidden_dim: expected a multiple of retention.heads=4"):
        network_of(hidden_dim=10)


# Losses


def weights_loop(values: dict) -> dict:
    """(e, t, i) -> softmax over the entries of the same t and i, times their number."""
    found = {}
    for key, value in values.items():
        same = [v for k, v in values.items() if k[1:] == key[1:]]
        found[key] = len(same) * math.exp(value) / sum(math.exp(v) for v in same)
    return found


@pytest.mark.parametrize(
    "settings",
    [{"policy_temperature": 0.5, "target_temperature": 2.0},
     {"decentralised": True, "td_lambda": 0.7, "critic_coef": 0.5, "target_temperature": 0.7}],
)  # fmt: skip
def test_loss_and_step_are_those_of_the_loops(settings):
    learner, logger, args = cases.build("oryx", **settings)
    nudge(learner.target)
    batch = cases.random_batch(cases.LENGTHS, args, pad=2)
    cases.descend_plainly(learner, 0.02)
    packed = batch.packed
    net = copy.deepcopy(learner.network).double()
    target = copy.deepcopy(learner.target).double()
    th.manual_seed(7)
    order = th.randperm(3)
    inputs = learner.mac.inputs(batch).double()
    actions = packed.pack(batch["actions"]).squeeze(-1)
    logits, q = (packed.unpack(x) for x in net.unroll(inputs, actions, packed, order))
    target_q = packed.unpack(target.unroll(inputs, actions, packed, order)[1]).detach()
    cells, n, first = cases.transitions_of(batch), 3, int(order[0])

    def log_pi(e, t, i):
        return cases.log_softmax_loop(logits[e, t, i], batch["avail_actions"][e, t, i])

    values, advantages = {}, {}
    for e, t in cells:
        for i in range(n):
            action = int(batch["actions"][e, t + 1, i, 0])
            if (e, t + 1) in cells:
                values[e, t, i] = float(target_q[e, t + 1, i, action])
            else:
                pi = log_pi(e, t + 1, first).exp().detach()
                values[e, t, i] = float((pi * target_q[e, t + 1, first]).sum())
            own, pi = q[e, t, i].detach(), log_pi(e, t, i).exp().detach()
            taken = own[batch["actions"][e, t, i, 0]]
            advantages[e, t, i] = float(taken - sum(pi[b] * own[b] for b in range(4)))
    goes_on = {
        key: v / args.target_temperature
        for key, v in values.items() if not batch["terminated"][key[0], key[1], 0]
    }  # fmt: skip
    weights = weights_loop(goes_on)
    values = {key: weights.get(key, 0.0) * v for key, v in values.items()}
    q_loss = policy_loss = 0.0
    w = weights_loop({key: v / args.policy_temperature for key, v in advantages.items()})
    for i in range(n):
        following = {(e, t): th.tensor(values[e, t, i]).double() for e, t in cells}
        y = cases.td_lambda_loop(batch, following, args.gamma, args.td_lambda)
        for e, t in cells:
            action = int(batch["actions"][e, t, i, 0])
            q_loss = q_loss + 0.5 * (q[e, t, i, action] - y[e, t]) ** 2
            policy_loss = policy_loss - w[e, t, i] * log_pi(e, t, i)[action]
    q_loss, policy_loss = (x / (n * len(cells)) for x in (q_loss, policy_loss))
    before = copy.deepcopy(learner.target)
    th.manual_seed(7)
    learner.train(batch, 0, 8)
    assert logger.stats["q_loss"] == [pytest.approx(q_loss.item(), rel=1e-4)]
    assert logger.stats["policy_loss"] == [pytest.approx(policy_loss.item(), rel=1e-4)]
    cases.descend(net.parameters(), args.critic_coef * q_loss + policy_loss, 0.02)
    cases.assert_close_weights(learner.network, net)
    for found, old, new in zip(
        learner.target.parameters(), before.parameters(), learner.network.parameters(), strict=True
    ):
        assert th.allclose(found, (1 - args.target_tau) * old + args.target_tau * new)


# Acting


def test_agents_draw_independently_and_know_what_those_before_them_drew():
    """With equal logits they agree half of the time (the public code's always did), and whoever
    comes later acts on what was drawn, not on the most probable."""
    mac, args = network_of(hidden_dim=8, n_agents=2, n_actions=2)
    n = 4000
    batch = cases.random_batch([1] * n, args)
    for value in batch.data.values():
        value[:] = value[:1].clone()
    batch["avail_actions"][:] = 1
    with th.no_grad():
        for p in mac.sequence.policy[-1].parameters():
            p.zero_()
    mac.init_hidden(n)
    drawn = mac.select_actions(batch, 0, 0)
    assert (drawn[:, 0] == drawn[:, 1]).float().mean().item() == pytest.approx(0.5, abs=0.04)
    nudge(mac.sequence.policy)
    mac.init_hidden(n)
    drawn = mac.select_actions(batch, 0, 0)
    expected = mac.joint_policy(batch)
    for joint in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (drawn == th.tensor(joint)).all(1).float().mean().item()
        assert share == pytest.approx(expected[joint], abs=0.03)
    marginals = expected.sum(1)[:, None] * expected.sum(0)[None]
    assert abs(expected - marginals).max() > 0.003  # not a product


@pytest.mark.parametrize("greedy", [False, True])
def test_the_joint_policy_of_agents_that_act_alone_is_their_product(greedy):
    mac, args = network_of(decentralised=True, test_greedy=greedy)
    batch = cases.random_batch([1, 1], args)
    found = mac.joint_policy(batch)
    assert found.shape == (4, 4, 4) and found.sum() == pytest.approx(1)
    assert found == pytest.approx(BasicMAC.joint_policy(mac, batch), abs=1e-6)


def test_episodes_that_have_ended_are_left_alone():
    mac, args = network_of()
    batch = cases.random_batch([3] * 4, args)
    bs = th.tensor([1, 3])
    mac.init_hidden(4)
    before = mac.hidden_states.clone()
    actions = mac.select_actions(batch, 0, 0, bs=bs)
    assert actions.shape == (2, 3)
    assert (batch["avail_actions"][bs, 0].gather(-1, actions[..., None]) == 1).all()
    moved = (mac.hidden_states != before).flatten(1).any(1)
    assert moved.tolist() == [False, True, False, True]


# Where it ends


def end_of(map_name, quality, updates=60, **overrides):
    """The expected return of the joint policy."""
    joint, payoff = cases.game_data(map_name, quality)
    batch = cases.game_batch(joint, payoff)
    fast = {"lr": 0.01, "target_tau": 0.2, "agent": "oryx", "hidden_dim": 16}
    learner, _ = cases.game_learner("oryx", len(payoff), t_max=updates, **(fast | overrides))
    for k in range(updates):
        learner.train(batch, k, 8)
    return float((learner.mac.joint_policy(batch) * payoff.numpy()).sum())


@pytest.mark.parametrize("quality", ["a", "b", "c"])
def test_agents_who_act_in_turn_coordinate_xor(quality):
    """A sampler of joint actions can hold {AB, BA} alone: 1.00 on all three."""
    assert end_of("xor", quality) == pytest.approx(1.0, abs=0.03)


def test_the_decentralised_form_does_not_coordinate_xor_a():
    assert end_of("xor", "a", decentralised=True) == pytest.approx(0.0, abs=0.2)
