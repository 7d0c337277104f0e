"""ICQ: implicit constraint Q-learning, values and weights from actions in the data alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import Learner, StatsLogger
from inspo.learners.targets import TargetSchedule
from inspo.modules.critics import DuelingCritic
from inspo.modules.mixers import REGISTRY as mixer_REGISTRY
from inspo.modules.mixers.convex import ConvexMixer
from inspo.modules.mixers.qmix import QMixer
from inspo.utils.errors import named
from inspo.utils.rl_utils import UNAVAILABLE, gather_actions, masked_log_softmax
from inspo.utils.settings import Settings

Mixer = ConvexMixer | QMixer


def step_weights(values: th.Tensor, valid: th.Tensor, time: th.Tensor, n_steps: int) -> th.Tensor:
    """Softmax over the episodes that are valid at the same step, times their number.

    So the weights of a step have mean 1 over its valid entries, however many episodes have ended.

    Args:
        values: `[M, K]`, K softmaxes apart from each other.
        valid: bool `[M]`; the others get weight 0 and have no part in any sum.
        time: long `[M]`, the step that each row belongs to, below `n_steps`.
    Returns: `[M, K]`.
    """
    values = values.masked_fill(~valid.unsqueeze(-1), UNAVAILABLE)
    shape = (n_steps, values.shape[1])
    top = values.new_full(shape, UNAVAILABLE)
    top = top.scatter_reduce(0, time.unsqueeze(-1).expand_as(values), values, "amax")
    powers = (values - top[time]).exp()
    total = values.new_zeros(shape).index_add(0, time, powers)
    count = values.new_zeros(n_steps).index_add(0, time, valid.to(values.dtype))
    return powers / total[time] * count[time].unsqueeze(-1)


def supported_mean(
    q: th.Tensor, log_pi: th.Tensor, log_mu: th.Tensor, threshold: float
) -> th.Tensor:
    """E_pi Q over mu's likeliest action and all that it takes with more than `threshold`.

    q, log_pi and log_mu `[..., A]` -> `[...]`.
    """
    supported = log_mu >= log_mu.amax(-1, keepdim=True).clamp(max=math.log(threshold))
    pi = th.where(supported, log_pi, UNAVAILABLE).softmax(-1)
    return (pi * q).sum(-1)


class ICQLearner(Learner):
    r"""Implicit constraint Q-learning, multi-agent (Yang et al., NeurIPS 2021, arXiv 2106.03400).

    One critic shared by the agents, on state, observation and identity, and a mixer
    :math:`Q_{tot}(s, a) = \sum_i k_i(s) Q_i(s, a_i)` with :math:`k_i \ge 0, \sum_i k_i = 1`; the
    bar marks their targets. Values are those of the actions in the data (SARSA), weighted so as
    to lean towards the better ones:

    .. math::
        V(s') &= w' \, \bar Q_{tot}(s', a'), \quad
            w' = B' \operatorname{softmax}_{B'}(\bar Q_{tot}(s', a') / T_{target}) \\
        L(\phi) &= \operatorname{mean}_m (Q_{tot}(s, a) - G^\lambda[V])^2 \\
        L(\theta) &= -\operatorname{mean}_{m, i} k_i(s) \, w_i \log \pi_i(a_i | \tau_i), \quad
            w_i = B \operatorname{softmax}_B(A_i / T_{policy}), \quad
            A_i = Q_i(s, a_i) - \textstyle\sum_b \pi_i(b) Q_i(s, b)

    with G the TD(lambda) return, no gradient through k, w and A in L(theta), and the softmax over
    the B episodes of the batch that have a transition in the same step (for w': whose next step is
    not a terminal one). T_target is `target_temperature`, T_policy `policy_temperature`.

    One call: `critic_epochs` passes of critic and mixer over the batch's transitions, in
    minibatches of `critic_minibatch` drawn anew each time; the copy into the targets, once
    `target_update_interval` steps of the critic have passed since the last; one step of the actors
    on the whole batch.

    The mixer `convex` is that of the authors' code, in which k_i is the derivative of Q_tot; the
    port in CFCQL's repository trains a QMIX mixer (`qmix`) and takes k from its weights, with which
    the spread of the advantages, and so what a temperature means, is another. Batch and clip are
    the port's, and so are its data.

    Named deviation, `support` > 0: the sum in A_i runs over the actions that the fitted behaviour
    policy takes with more than this probability, and pi_i is normalised over them. What the data
    never show, a critic that is learnt from the data leaves free.

    Mended, against both: padding and terminal states take part in their softmax, and B is the size
    of the batch however many episodes have ended; an episode that was cut is bootstrapped from the
    action stored in its last row, which data need not have: here from the policy's expectation of
    Q_i, exact for the convex mixer. As in OMAR, a step of the critic is on `critic_minibatch`
    transitions of all times in place of one time index.
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        state_dim = scheme["state"]["vshape"]
        self.critic = DuelingCritic(
            state_dim,
            scheme["obs"]["vshape"],
            args.n_agents,
            args.n_actions,
            args.critic_hidden_dim,
        )
        self.mixer: Mixer = named(mixer_REGISTRY, args.mixer, "mixer")(args)
        self.target_critic = copy.deepcopy(self.critic)
        self.target_mixer = copy.deepcopy(self.mixer)
        self.networks |= {
            "critic": self.critic,
            "mixer": self.mixer,
            "target_critic": self.target_critic,
            "target_mixer": self.target_mixer,
        }
        parameters = [*self.critic.parameters(), *self.mixer.parameters()]
        self.optimisers["critic"] = th.optim.RMSprop(
            parameters, lr=args.critic_lr, alpha=args.optim_alpha, eps=args.optim_eps
        )
        self.optimisers["policy"] = th.optim.RMSprop(
            mac.parameters(), lr=args.lr, alpha=args.optim_alpha, eps=args.optim_eps
        )
        self.critic_steps = 0  # since the targets were copied

    @classmethod
    def fits_behaviour(cls, args: Settings) -> bool:
        return args.support > 0

    def target_schedule(self, updates: int, transitions: float) -> TargetSchedule:
        a = self.args
        steps = math.ceil(transitions / a.critic_minibatch) * a.critic_epochs
        updates_between = max(1, math.ceil(a.target_update_interval / steps))
        return TargetSchedule(updates // updates_between, 1.0, a.td_lambda)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        data = Transitions(batch, self.mac)
        logits = self.mac.agent.unroll(data.inputs, data.packed)
        log_pi = masked_log_softmax(logits, data.avail)  # [R, n, A]
        targets = self._targets(data, log_pi.detach())
        state, obs = data.state[data.now], data.obs[data.now]
        stats = self._improve_critic(data, state, obs, targets)
        if self.critic_steps >= self.args.target_update_interval:
            self.critic_steps = 0
            self.target_critic.load_state_dict(self.critic.state_dict())
            self.target_mixer.load_state_dict(self.mixer.state_dict())
        stats |= self._improve_policies(data, state, obs, log_pi)
        self.updates += 1
        if self.log_due(t_env):
            self.logger.log_stats(stats | {"target_mean": targets.mean()}, t_env)

    @th.no_grad()
    def _targets(self, data: Transitions, log_pi: th.Tensor) -> th.Tensor:
        """G of every transition, `[M]`. log_pi `[R, n, A]`."""
        a = self.args
        packed, then = data.packed, data.then
        state = data.state[then]
        q = self.target_critic.evaluate(state, data.obs[then])
        taken = gather_actions(q, data.all_actions[then])
        expected = (log_pi[then].exp() * q).sum(-1)
        q_tot = self.target_mixer(th.where(data.goes_on.unsqueeze(-1), taken, expected), state)
        weight = step_weights(
            q_tot.unsqueeze(-1) / a.target_temperature,
            data.terminated == 0,
            packed.time[then],
            packed.max_seq_length,
        )
        return data.td_lambda(weight.squeeze(-1) * q_tot, a.gamma, a.td_lambda)

    def _improve_critic(
        self,
        data: Transitions,
        state: th.Tensor,
        obs: th.Tensor,
        targets: th.Tensor,
    ) -> dict[str, th.Tensor]:
        """The sweep of critic and mixer: state `[M, S]`, obs `[M, n, O]`, targets `[M]`."""
        a = self.args
        losses, norms = [], []
        for _ in range(a.critic_epochs):
            order = th.randperm(len(data), device=state.device)
            drawn = (x[order] for x in (state, obs, data.actions, targets))
            for s, o, actions, y in zip(*(x.split(a.critic_minibatch) for x in drawn)):
                q = gather_actions(self.critic(s, o), actions)
                loss = (self.mixer(q, s) - y).square().mean()
                norms.append(self.descend("critic", loss, a.grad_norm_clip))
                losses.append(loss.detach())
        self.critic_steps += len(losses)
        return {
            "critic_loss": th.stack(losses).mean(),
            "critic_grad_norm": th.stack(norms).mean(),
        }

    def _improve_policies(
        self,
        data: Transitions,
        state: th.Tensor,
        obs: th.Tensor,
        log_pi: th.Tensor,
    ) -> dict[str, th.Tensor]:
        """One step of the actors. state `[M, S]`, obs `[M, n, O]`, log_pi `[R, n, A]`."""
        a = self.args
        log_pi = log_pi[data.now]
        with th.no_grad():
            q = self.critic.evaluate(state, obs)
            advantage = gather_actions(q, data.actions) - self._baseline(data, q, log_pi)
            weight = step_weights(
                advantage / a.policy_temperature,
                th.ones_like(data.now, dtype=th.bool),
                data.packed.time[data.now],
                data.packed.max_seq_length,
            )
            k = self.mixer.shares(state)
        loss = -(k * weight * gather_actions(log_pi, data.actions)).mean()
        norm = self.descend("policy", loss, a.grad_norm_clip)
        return {
            "policy_loss": loss.detach(),
            "policy_grad_norm": norm,
            "advantage_std": advantage.std(),
            "weight_max": weight.max(),
            "mixing_weight_max": k.amax(-1).mean(),
        }

    def _baseline(self, data: Transitions, q: th.Tensor, log_pi: th.Tensor) -> th.Tensor:
        """E_pi Q_i of every transition and agent, `[M, n]`. q and log_pi `[M, n, A]`."""
        if not self.args.support:
            return (log_pi.exp() * q).sum(-1)
        log_mu = data.batch.rows("behaviour_log_probs")[data.now]
        return supported_mean(q, log_pi, log_mu, self.args.support)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"critic_steps": self.critic_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.critic_steps = state["critic_steps"]
