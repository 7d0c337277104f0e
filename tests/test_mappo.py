"""MAPPO: ratio, clip, generalised advantage and value norm, by loops."""

import copy
import math

import cases
import pytest
import torch as th

from inspo.learners.mappo_learner import ValueNorm


def test_value_norm_follows_the_moments():
    norm = ValueNorm(decay=0.9)
    th.manual_seed(0)
    batches = [5 + 3 * th.randn(50) for _ in range(6)]
    mean = square = weight = 0.0
    for x in batches:
        norm.update(x)
        mean = 0.9 * mean + 0.1 * x.mean().item()
        square = 0.9 * square + 0.1 * (x**2).mean().item()
        weight = 0.9 * weight + 0.1
    mean, square = mean / weight, square / weight  # without the zeros that it began with
    std = math.sqrt(square - mean**2)
    x = th.tensor([1.0, 5.0, 9.0])
    assert norm.normalise(x).tolist() == pytest.approx(((x - mean) / std).tolist(), rel=1e-4)
    assert norm.denormalise(norm.normalise(x)).tolist() == pytest.approx(x.tolist(), rel=1e-5)
    constant = ValueNorm()
    constant.update(th.full((4,), 2.0))
    assert constant.normalise(th.tensor(2.0)).item() == pytest.approx(0, abs=1e-4)


class Literal:
    """Two epochs of PPO with loops, in double precision, on copies of the networks."""

    def __init__(self, learner, batch):
        self.args, self.batch, self.cells = learner.args, batch, cases.transitions_of(batch)
        self.agent = copy.deepcopy(learner.mac.agent).double()
        self.critic = copy.deepcopy(learner.critic).double()
        self.norm = copy.deepcopy(learner.value_norm).double()
        self.logged = {}

    def log_policies(self):
        out = {}
        for i in range(3):
            outputs = cases.play_agent(self.agent, self.batch, self.args, i)
            for e, t in self.cells:
                out[e, t, i] = cases.log_softmax_loop(
                    outputs[e, t], self.batch["avail_actions"][e, t, i]
                )
        return out

    def value(self, e, t):
        return self.critic(self.batch["state"][e, t].double())[0]

    def advantages(self):
        """GAE by its own recursion: A_t = delta_t + gamma lambda (1 - d) A_{t+1}."""
        advantage = {}
        for e, t in reversed(sorted(self.cells)):
            v, v_next = (self.norm.denormalise(self.value(e, k)).item() for k in (t, t + 1))
            going_on = 1.0 - float(self.batch["terminated"][e, t, 0])
            reward = self.batch["reward"][e, t, 0].item()
            delta = reward + self.args.gamma * going_on * v_next - v
            later = advantage.get((e, t + 1), 0.0)
            decay = self.args.gamma * self.args.gae_lambda * going_on
            advantage[e, t] = delta + decay * later
        return advantage

    def train(self, lr):
        a = self.args
        raw = self.advantages()
        targets = {c: x + self.norm.denormalise(self.value(*c)).item() for c, x in raw.items()}
        mean = sum(raw.values()) / len(raw)
        std = math.sqrt(sum((x - mean) ** 2 for x in raw.values()) / (len(raw) - 1))
        advantage = {cell: (x - mean) / std for cell, x in raw.items()}
        self.norm.update(th.tensor(list(targets.values()), dtype=th.double))
        old = None
        for _ in range(a.epochs):
            log_policies = self.log_policies()
            taken = {
                (e, t, i): lp[self.batch["actions"][e, t, i, 0]]
                for (e, t, i), lp in log_policies.items()
            }
            old = old or {key: value.item() for key, value in taken.items()}
            gain, entropy, n = 0.0, 0.0, 0
            for (e, t, i), log_policy in log_policies.items():
                possible = cases.available(self.batch, e, t, i)
                if len(possible) < 2:
                    continue
                ratio = (taken[e, t, i] - old[e, t, i]).exp()
                clipped = min(max(ratio.item(), 1 - a.eps_clip), 1 + a.eps_clip)
                both = [ratio * advantage[e, t], ratio.detach() * 0 + clipped * advantage[e, t]]
                gain = gain + min(both, key=th.Tensor.item)
                entropy = entropy - sum(log_policy[b].exp() * log_policy[b] for b in possible)
                n += 1
            loss = -(gain + a.entropy_coef * entropy) / n
            self.logged["actor_loss"] = loss.item()
            cases.descend(self.agent.parameters(), loss, lr)
            loss = 0.0
            for cell in self.cells:
                error = (
                    self.value(*cell)
                    - self.norm.normalise(th.tensor(targets[cell], dtype=th.double)).item()
                )
                small = error.abs().item() <= 1
                loss = loss + (0.5 * error**2 if small else error.abs() - 0.5)
            loss = loss / len(self.cells)
            self.logged["critic_loss"] = loss.item()
            cases.descend(self.critic.parameters(), loss, lr)


def test_one_call_is_the_literal_algorithm():
    learner, logger, args = cases.build(
        "mappo", epochs=3, entropy_coef=0.1, eps_clip=0.05, lr_decay="none"
    )
    batch = cases.random_batch(cases.LENGTHS, args, pad=2)
    learner.value_norm.update(3 + 2 * th.randn(20))  # moments that do not cancel
    cases.descend_plainly(learner, 0.5)
    literal = Literal(learner, batch)
    literal.train(0.5)
    learner.train(batch, 0, 8)
    for key, value in literal.logged.items():
        assert logger.stats[key] == [pytest.approx(value, rel=1e-4, abs=1e-6)]
    cases.assert_close_weights(learner.mac.agent, literal.agent)
    cases.assert_close_weights(learner.critic, literal.critic)
    assert logger.stats["clipped_share"][0] > 0  # the clip has been at work


def test_the_policy_waits_for_the_critic():
    learner, _, args = cases.build("mappo", critic_warmup=0.5, t_max=100)
    batch = cases.random_batch(cases.LENGTHS, args)
    start = copy.deepcopy(learner.networks)

    def moved(name: str) -> bool:
        return not cases.same_weights(learner.networks[name], start[name])

    learner.train(batch, 49, 8)
    assert moved("critic") and not moved("agent")
    learner.train(batch, 50, 16)
    assert moved("agent")
