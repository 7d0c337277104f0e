"""Controllers: what agents see, that they act within their masks, and the orders of the sweep."""

import copy
import itertools

import pytest
import torch as th
from cases import (
    LENGTHS,
    inputs_loop,
    log_softmax_loop,
    make_args,
    make_mac,
    play_agent,
    random_batch,
)

from inspo.components.action_selectors import REGISTRY as selectors
from inspo.modules.agents import REGISTRY as agents
from inspo.utils.errors import ConfigError


@pytest.mark.parametrize("last_action", [True, False])
@pytest.mark.parametrize("agent_id", [True, False])
def test_inputs_are_obs_last_action_and_identity(last_action, agent_id):
    args = make_args("bc", obs_last_action=last_action, obs_agent_id=agent_id)
    mac, batch = make_mac(args), random_batch(LENGTHS, pad=2)
    packed, inputs = batch.packed, mac.inputs(batch)
    assert inputs.shape[-1] == mac.input_shape == 4 + 4 * last_action + 3 * agent_id
    for row, cell in zip(inputs, packed.index.tolist()):
        e, t = divmod(cell, batch.max_seq_length)
        for i in range(3):
            assert th.equal(row[i], inputs_loop(batch, args, e, t, i))


@pytest.mark.parametrize("agent", list(agents))
def test_acting_sees_what_learning_sees(agent):
    """`forward` step by step and `unroll` of the finished episodes give the same policies."""
    args = make_args("bc", agent=agent)
    mac, batch = make_mac(args), random_batch(LENGTHS)
    unrolled = batch.packed.unpack(mac.unroll(batch))
    mac.init_hidden(batch.batch_size)
    for t in range(batch.max_seq_length):
        probs = mac.forward(batch, t)
        for e in range(batch.batch_size):
            if not batch["filled"][e, t]:
                continue
            for i in range(3):
                avail = batch["avail_actions"][e, t, i]
                expected = log_softmax_loop(unrolled[e, t, i].detach(), avail).exp()
                assert th.allclose(probs[e, i], expected, atol=1e-5)
                assert (probs[e, i][avail == 0] == 0).all()


@pytest.mark.parametrize("alg", ["bc", "qmix"])
def test_never_an_unavailable_action(alg):
    env = "matrix_offline" if alg == "bc" else "matrix"
    for test_mode, test_epsilon, greedy in itertools.product(
        (True, False), (0, 0.5), (True, False)
    ):
        settings = {"test_epsilon": test_epsilon, "test_greedy": greedy, "epsilon_start": 0.5}
        mac, batch = make_mac(make_args(alg, env, **settings)), random_batch([3] * 40)
        mac.init_hidden(batch.batch_size)
        for t in range(4):
            actions = mac.select_actions(batch, t, 0, test_mode=test_mode)
            assert actions.shape == (40, 3)
            assert (batch["avail_actions"][:, t].gather(-1, actions[..., None]) == 1).all()


def test_exploration_has_the_share_of_epsilon():
    args = make_args("qmix", "matrix", epsilon_start=1.0, epsilon_finish=0.2, test_epsilon=0.0)
    args.epsilon_anneal_time = 100
    mac = make_mac(args)
    values = th.tensor([0.0, 1.0, 0.0, 0.0]).expand(20000, 1, 4)
    avail = th.tensor([1, 1, 1, 0]).expand(20000, 1, 4)
    for t_env, epsilon in ((0, 1.0), (50, 0.6), (1000, 0.2)):
        share = (mac.action_selector.select(values, avail, t_env, False) != 1).float().mean()
        assert share.item() == pytest.approx(epsilon * 2 / 3, abs=0.015)
        assert mac.action_selector.epsilon == pytest.approx(epsilon)
    assert (mac.action_selector.select(values, avail, 0, True) == 1).all()


@pytest.mark.parametrize("name", ["greedy", "epsilon_greedy", "multinomial"])
@pytest.mark.parametrize("test_greedy", [True, False])
def test_a_test_draws_from_the_probabilities_that_are_told(name, test_greedy):
    args = make_args("qmix", "matrix", test_epsilon=0.0, test_greedy=test_greedy)
    selector = selectors[name](args)
    outputs = th.tensor([[0.5, 0.2, 0.0, 0.3], [0.1, 0.6, 0.0, 0.3]])
    avail = (outputs > 0).int()
    told = selector.probabilities(outputs[None], avail[None])[0]
    drawn = selector.select(outputs.expand(20000, 2, 4), avail.expand(20000, 2, 4), 0, True)
    for i in range(2):
        shares = th.bincount(drawn[:, i], minlength=4) / 20000
        assert th.allclose(shares, told[i], atol=0.015)
    sampled = name == "multinomial" and not test_greedy
    assert th.equal(told, outputs) == sampled
    assert sampled or told.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    if name == "multinomial":  # which samples in training, however it is tested
        drawn = selector.select(outputs.expand(20000, 2, 4), avail.expand(20000, 2, 4), 0, False)
        shares = th.bincount(drawn[:, 0], minlength=4) / 20000
        assert th.allclose(shares, outputs[0], atol=0.015) and shares[2] == 0


def test_greedy_is_the_best_available_of_the_episodes_asked_for():
    selector = selectors["greedy"](make_args("qmix", "matrix"))
    values, avail = th.tensor([[[-3.0, -1.0, -2.0, 9.0]]]), th.tensor([[[1, 0, 1, 0]]])
    assert selector.select(values, avail, 0, False).tolist() == [[2]]
    assert selector.probabilities(values, avail).tolist() == [[[0, 0, 1, 0]]]
    mac, batch, bs = make_mac(make_args("bc", test_greedy=True)), random_batch([3] * 6), [1, 4]
    mac.init_hidden(6)
    probs = mac.forward(batch, 0)
    mac.init_hidden(6)
    actions = mac.select_actions(batch, 0, 0, bs=th.tensor(bs), test_mode=True)
    assert th.equal(actions, probs[bs].argmax(-1))


def test_copies_and_files(tmp_path):
    args = make_args("bc")
    mac, batch = make_mac(args), random_batch(LENGTHS)
    before = mac.unroll(batch)
    twin, other, third = copy.deepcopy(mac), make_mac(args), make_mac(args)
    mac.save_models(tmp_path)
    other.load_models(tmp_path)
    third.load_state(mac)
    with th.no_grad():
        for p in mac.parameters():
            p.add_(1.0)
    assert not th.allclose(mac.unroll(batch), before)
    for copied in (twin, other, third):
        assert th.equal(copied.unroll(batch), before)


# The sequential controller


def sequential(order: str, n_agents: int = 3, agent: str = "rnn_ns", blocks: int = 0):
    return make_mac(
        make_args("inspo", agent_order=order, n_agents=n_agents, agent=agent, blocks=blocks)
    )


def flat(blocks):
    assert all(len(block) == 1 for block in blocks)
    return [agent for block in blocks for agent in block]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(0, [[0], [1], [2], [3], [4]]), (1, [[0, 1, 2, 3, 4]]), (2, [[0, 1], [2, 3, 4]]),
     (3, [[0], [1, 2], [3, 4]]), (5, [[0], [1], [2], [3], [4]])],
)  # fmt: skip
def test_the_order_is_cut_into_blocks(blocks, expected):
    assert sequential("fixed", n_agents=5, blocks=blocks).draw_order() == expected
    with pytest.raises(ConfigError, match=r"blocks: expected at most 3, .* found 4"):
        sequential("random", blocks=4).draw_order()
    with pytest.raises(ConfigError, match="agent: expected a network for each agent"):
        sequential("random", agent="rnn")


def test_random_and_fixed_orders():
    th.manual_seed(0)
    fixed, random = sequential("fixed"), sequential("random")
    assert all(flat(fixed.draw_order()) == [0, 1, 2] for _ in range(5))
    drawn = [tuple(flat(random.draw_order())) for _ in range(1200)]
    assert len(set(drawn)) == 6
    assert all(sorted(order) == [0, 1, 2] for order in drawn)
    assert all(drawn.count(order) > 140 for order in set(drawn))  # 200 expected, s.d. 13


def test_semi_greedy_gives_every_second_place_to_the_largest_advantage(monkeypatch):
    mac = sequential("semi_greedy", n_agents=5)
    score = th.tensor([0.1, 0.5, 0.3, 0.9, 0.2])
    monkeypatch.setattr(th, "randperm", lambda n: th.tensor([2, 0, 4, 1, 3]))
    # place 0: drawn (2). place 1: the best of {0, 4, 1, 3} is 3. place 2: the next drawn, 0.
    # place 3: the best of {4, 1} is 1. place 4: what is left, 4.
    assert flat(mac.draw_order(score)) == [2, 3, 0, 1, 4]
    monkeypatch.setattr(th, "randperm", lambda n: th.tensor([3, 1, 0, 2, 4]))
    assert flat(mac.draw_order(score)) == [3, 1, 0, 2, 4]
    monkeypatch.undo()
    assert all(sorted(flat(mac.draw_order(score))) == list(range(5)) for _ in range(20))


@pytest.mark.parametrize("agent", ["rnn_ns", "mlp_ns"])
def test_policies_of_the_agents_do_not_share_gradients(agent):
    args = make_args("inspo", agent=agent)
    mac, batch = make_mac(args), random_batch(LENGTHS)
    packed, inputs, avail = batch.packed, mac.inputs(batch), batch.rows("avail_actions")
    for i in range(3):
        log_policy = mac.log_policy(i, inputs, avail, packed)
        outputs = play_agent(mac.agent.agents[i], batch, args, i)
        for row, cell in zip(log_policy, packed.index.tolist()):
            e, t = divmod(cell, batch.max_seq_length)
            expected = log_softmax_loop(outputs[e, t], batch["avail_actions"][e, t, i])
            assert th.allclose(row, expected, atol=1e-5)
        mac.agent.zero_grad(set_to_none=True)
        log_policy[batch["avail_actions"].flatten(0, 1)[packed.index, i] > 0].sum().backward()
        own = {id(p) for p in mac.agent_parameters(i)}
        assert all((p.grad is not None) == (id(p) in own) for p in mac.parameters())
