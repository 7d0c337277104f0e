"""InSPO: in-sample sequential policy optimisation."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch as th
from torch import nn

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.schedules import hold_decay
from inspo.components.transitions import AnnotatedTransitions
from inspo.controllers.sequential_controller import SequentialMAC
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.learners.ratios import (
    Resampled,
    advantage_weights,
    effective_share,
    others_log_ratio,
    ratio_exponent,
    resample,
)
from inspo.learners.targets import TargetSchedule
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.modules.mlp import MLP, each
from inspo.modules.module_list import ListOf
from inspo.utils.errors import ConfigError
from inspo.utils.rl_utils import (
    entropy,
    explained_variance,
    gather_actions,
    kl_divergence,
    masked_logsumexp,
    soft_update,
)
from inspo.utils.settings import Settings


@dataclass
class Sweep:
    """One call of `train`: what is computed for all agents at once, and what changes turn by turn.

    Attributes:
        beta: temperature of the entropy.
        improving: whether the policies are trained; logging: whether statistics are asked for.
        log_policies: log pi_i of the old policies with their graphs, `[R, A]` each.
        log_pi, log_mu: the same without, and of the data's policies, `[n, R, A]`.
        inputs: of the critics, `[n, R, S + I]`.
        q_bar: the target critics, `[n, R, A]`, one pass for y (24) and for A (20).
        joint: what an agent takes the others to play, `[n, R, A]`: new policies enter as they are
            updated; taken: at the actions in the data, `[M, n]`.
        weights: of Eq. 20, `[n, M]`.
        stats: key -> values of agents, `[k]` each.
        drawn, others_kl, log_ratio, power: of each agent that had its turn: D_rho, K_i `[M]` where
            rewards pay for it, the log-ratio of Eq. 14 `[M]`, and the power that it was given.
    """

    data: AnnotatedTransitions
    beta: float
    improving: bool
    logging: bool
    log_policies: list[th.Tensor]
    log_pi: th.Tensor
    log_mu: th.Tensor
    inputs: th.Tensor
    q_bar: th.Tensor
    joint: th.Tensor
    taken: th.Tensor
    weights: th.Tensor
    stats: dict[str, list[th.Tensor]] = field(default_factory=lambda: defaultdict(list))
    drawn: dict[int, Resampled] = field(default_factory=dict)
    others_kl: dict[int, th.Tensor] = field(default_factory=dict)
    log_ratio: dict[int, th.Tensor] = field(default_factory=dict)
    power: dict[int, th.Tensor] = field(default_factory=dict)

    def note(self, **values: th.Tensor) -> None:
        """Keep statistics of some agents, `[k]`, of one or several `[]`."""
        for key, value in values.items():
            self.stats[key].append(value.detach().reshape(-1))


class InSPOLearner(Learner):
    r"""In-Sample Sequential Policy Optimisation (arXiv 2412.07639), discrete actions.

    For each agent i in turn, in a fresh order for every call (Algorithm 1), on data resampled in
    proportion to

    .. math::
        \rho_i = \Big(\frac{\pi^{-i}(a^{-i}|s)}{\mu^{-i}(a^{-i}|s, a^i)}\Big)^p
        \qquad (14, 15, 22, 23)

    (p = 1 in Eq. 14, 1 / (N - 1) in Eq. 23, see `ratio_exponent`), first its critic, then its
    policy takes `turn_steps` steps down

    .. math::
        J(\phi_i) &= E_{D_\rho}\big[(Q_i(s, a_i) - y)^2\big] + \alpha_{CQL} E_{D_\rho}\big[
            \log \textstyle\sum_a e^{Q_i(s, a)} - E_{a \sim \mu_i} Q_i(s, a)\big] \qquad (24) \\
        y &= r + \gamma \big[E_{\pi_i} \bar Q_i(s', \cdot) - \alpha KL(\pi_i \| \mu_i)(s')
            + \beta H(\pi_i)(s')\big] \\
        J(\theta_i) &= -E_{D_\rho}\Big[\exp\Big(\frac{A_i - \beta \log \mu_i(a_i)}{\alpha + \beta}
            \Big) \log \pi_i(a_i)\Big], \quad
            A_i = \bar Q_i(s, a_i) - E_{\pi_i} \bar Q_i(s, \cdot) \qquad (20)

    and last the temperature, if it is tuned,

    .. math:: J(\alpha) = \alpha \, (\bar D - KL(\pi \| \mu)) \qquad (25)

    with the sign that makes alpha grow when the policies are too far from the data; as printed,
    (25) does the opposite (docs/theory.md).

    Open points and how they are decided stand in docs/algorithm.md; in short: policies see their
    histories, critics the state and the agent's input; both start from the behaviour policies, the
    critics alone are trained for the share `critic_warmup` of the run; with `td_lambda` > 0 the
    target y is the TD(lambda) return (0: Eq. 24 as printed), whose trace pays alpha KL - beta H at
    every step; with `joint_kl_coef` > 0 each reward pays for the others' KL too (`_others_kl`).
    With `blocks` > 0 the agents of a block are updated at once (Appendix C.6).

    The batch must carry, beside EPyMARL's keys,
        behaviour_log_probs `[B, T, n, A]`: log mu_i, from `offline.behaviour`;
        behaviour_log_prob_others `[B, T, n]`: log mu^{-i}(a^{-i} | s, a^i), unless
            `behaviour.others` is none, as in AWR (`config/algs/awr.yaml`): this learner with
            neither ratio nor sequence.
    """

    mac: SequentialMAC

    @classmethod
    def fits_behaviour(cls, args: Settings) -> bool:
        return True

    def __init__(
        self, mac: SequentialMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        width = scheme["state"]["vshape"] + mac.input_shape
        self.critics: ListOf[MLP] = ListOf(
            MLP(width, args.critic_hidden_dim, args.n_actions) for _ in range(args.n_agents)
        )
        self.target_critics = copy.deepcopy(self.critics)
        self.temperature = nn.ParameterDict({"log_alpha": th.tensor(math.log(args.alpha))})
        self.networks |= {
            "critics": self.critics,
            "target_critics": self.target_critics,
            "temperature": self.temperature,
        }
        for i in range(args.n_agents):
            self.optimisers[f"critic_{i}"] = adam(self.critics[i].parameters(), args.critic_lr)
            self.optimisers[f"policy_{i}"] = adam(mac.agent_parameters(i), args.lr)
        self.optimisers["alpha"] = adam(self.temperature.parameters(), args.alpha_lr)
        self.others: AutoregressivePolicy | None = None  # from `start_from`
        self.with_others = args.behaviour.others != "none"
        if not self.with_others and (args.ratio != "none" or args.joint_kl_coef):
            raise ConfigError(
                f"behaviour.others: none is for ratio=none and joint_kl_coef=0; found ratio="
                f"{args.ratio}, joint_kl_coef={args.joint_kl_coef:g}. Take autoregressive"
            )

    @property
    def alpha(self) -> th.Tensor:
        alpha: th.Tensor = self.temperature["log_alpha"].detach().exp()
        return alpha

    def start_from(self, behaviour: Any) -> None:
        """pi^0 = mu (the paper leaves Algorithm 1's input open; docs/algorithm.md, D7).

        behaviour: an `offline.behaviour.Behaviour`.
        """
        self.others = behaviour.others
        if self.args.init_from_behaviour:
            self.mac.agent.load_state_dict(behaviour.agent)

    def target_schedule(self, updates: int, transitions: float) -> TargetSchedule:
        a = self.args
        steps = math.ceil(transitions / a.critic_minibatch) if a.critic_minibatch else 1
        return TargetSchedule(updates * steps * a.turn_steps, a.target_tau, a.td_lambda)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        """One sweep over the agents on one batch of episodes."""
        a = self.args
        share = (t_env / a.t_max - a.critic_warmup) / (1 - a.critic_warmup)  # of the policies' time
        improving = share >= 0
        self.stage = "" if improving else f"critics alone until {a.critic_warmup:.0%}"
        beta = hold_decay(a.beta, a.beta_finish, a.beta_hold, a.beta_end, share)
        data = AnnotatedTransitions(batch, self.mac, self.with_others)
        sweep = self._begin(data, beta, improving, self.log_due(t_env))
        everybody = slice(0, self.n_agents)
        # No turn waits for another agent's critic. So the critics are trained at once, at the end,
        # unless each agent's policy is improved by its own critic as it then is.
        in_turn = improving and a.advantage_critic == "current"
        if improving and not in_turn:
            self._weigh(everybody, sweep, sweep.q_bar)
        blocks = self.mac.draw_order(self._expected_advantages(sweep))
        for block in blocks:
            for i in block:
                self._draw(i, sweep)
                if in_turn:
                    own = slice(i, i + 1)
                    self._improve_critics(own, sweep)
                    with th.no_grad():
                        self._weigh(own, sweep, each(self.critics[own], sweep.inputs[own]))
                if improving:
                    self._improve_policy(i, sweep)
            if improving and block is not blocks[-1]:
                for i in block:
                    with th.no_grad():
                        sweep.joint[i] = self._policy(i, data)
                    sweep.taken[:, i] = data.taken_by(i, sweep.joint[i])
        if not in_turn:
            self._improve_critics(everybody, sweep)

        if a.tune_alpha and improving:
            self._adapt_temperature(self._mean_kl(sweep))
        self.updates += 1
        if sweep.logging:
            self._diagnose(sweep)
            self._log(sweep, t_env)

    def _begin(
        self, data: AnnotatedTransitions, beta: float, improving: bool, logging: bool
    ) -> Sweep:
        # Each agent's graph depends on its own weights alone, so all are built before the first
        # update: the pass that gives log pi of the old policies is the one that is differentiated.
        with th.set_grad_enabled(improving):
            log_policies = [self._policy(i, data) for i in range(self.n_agents)]
        old = th.stack([log_policy.detach() for log_policy in log_policies])
        inputs = data.critic_inputs
        with th.no_grad():
            q_bar = each(self.target_critics, inputs)
        return Sweep(
            data=data,
            beta=beta,
            improving=improving,
            logging=logging,
            log_policies=log_policies,
            log_pi=old,
            log_mu=data.log_mu.transpose(0, 1),
            inputs=inputs,
            q_bar=q_bar,
            joint=old.clone(),
            taken=data.taken(old.transpose(0, 1)),
            weights=old.new_zeros(self.n_agents, len(data)),
        )

    def _draw(self, i: int, sweep: Sweep) -> None:
        """Agent i's turn begins: its ratio to what the others play now, and D_rho."""
        a, data = self.args, sweep.data
        if data.log_mu_others is None:
            log_ratio = th.zeros_like(data.reward)
        else:
            log_ratio = others_log_ratio(sweep.taken, data.log_mu_others[:, i], i)
        power = ratio_exponent(log_ratio, a.ratio, self.n_agents, a.ratio_share)
        sweep.log_ratio[i], sweep.power[i] = log_ratio, power
        sweep.drawn[i] = resample(power * log_ratio, a.resample)
        if a.joint_kl_coef:
            sweep.others_kl[i] = self._others_kl(i, sweep)

    def _policy(self, i: int, data: AnnotatedTransitions) -> th.Tensor:
        """log pi_i as it is now, `[R, A]`."""
        return self.mac.log_policy(i, data.inputs, data.avail, data.packed)

    def _targets(self, agents: slice, sweep: Sweep) -> th.Tensor:
        """y of Eq. 24 of the agents, `[k, M]`."""
        a, data = self.args, sweep.data
        log_pi, alpha = sweep.log_pi[agents], self.alpha
        expected_q = (log_pi.exp() * sweep.q_bar[agents]).sum(-1)
        cost = alpha * kl_divergence(log_pi, sweep.log_mu[agents]) - sweep.beta * entropy(log_pi)
        # Paid with the reward, not with V: so it counts alike for every lambda.
        reward = data.reward - a.gamma * (1 - data.terminated) * cost[:, data.then]
        if a.joint_kl_coef:
            others_kl = th.stack([sweep.others_kl[i] for i in self._numbers(agents)])
            reward = reward - a.joint_kl_coef * alpha * others_kl
        return data.td_lambda(expected_q[:, data.then], a.gamma, a.td_lambda, reward)

    def _numbers(self, agents: slice) -> range:
        return range(self.n_agents)[agents]

    @th.no_grad()
    def _others_kl(self, i: int, sweep: Sweep) -> th.Tensor:
        """K_i(s, a_i) = E_{pi^-i} log pi^{-i}(a^{-i}) / mu^{-i}(a^{-i} | s, a_i), `[M]`.

        The share of the joint KL(pi || mu) that Eq. 24 leaves out.
        """
        data, now = sweep.data, sweep.data.now
        log_pi = sweep.joint[:, now].transpose(0, 1)  # [M, n, A]
        assert self.others is not None
        return self.others.others_kl(
            i, data.state[now], data.log_mu[now], data.avail[now], data.actions, log_pi
        )

    def _improve_critics(self, agents: slice, sweep: Sweep) -> None:
        """Eq. 24 for the agents side by side, `turn_steps` passes over D_rho in minibatches of
        `critic_minibatch` transitions."""
        a, data, numbers = self.args, sweep.data, self._numbers(agents)
        critics, targets = self.critics[agents], self.target_critics[agents]
        names = [f"critic_{i}" for i in numbers]
        y = self._targets(agents, sweep)
        index, weight = (th.stack(x) for x in zip(*(sweep.drawn[i] for i in numbers)))  # [k, M]
        first_row = th.arange(len(numbers), device=index.device).unsqueeze(1) * len(data.state)
        inputs = sweep.inputs[agents].flatten(0, 1)  # [k R, S + I]
        avail = data.avail.transpose(0, 1)[agents].flatten(0, 1)
        mu = sweep.log_mu[agents].exp().flatten(0, 1)
        drawn = (
            data.now[index] + first_row,
            data.actions.T[agents].gather(1, index),
            y.gather(1, index),
            weight,
        )
        size = a.critic_minibatch or index.shape[1]
        minibatches = list(zip(*(x.split(size, dim=1) for x in drawn)))
        for rows, actions, y_drawn, w in minibatches * a.turn_steps:
            q = each(critics, inputs[rows])
            error = gather_actions(q, actions) - y_drawn
            penalty = masked_logsumexp(q, avail[rows]) - (mu[rows] * q).sum(-1)
            td, cql = (w * error.square()).mean(1), (w * penalty).mean(1)
            norms = self.descend_each(names, td + a.cql_alpha * cql, a.grad_norm_clip)
            soft_update(targets, critics, a.target_tau)
            if sweep.logging:
                sweep.note(critic_loss=td, cql_loss=cql, critic_grad_norm=norms)
        if sweep.logging:
            sweep.note(target_mean=y.mean(1))

    def _weigh(self, agents: slice, sweep: Sweep, q: th.Tensor) -> None:
        """The weights of Eq. 20, those of the old policies, from q `[k, R, A]`."""
        data, clip = sweep.data, self.args.weight_clip
        advantage = self._advantages(agents, sweep, q)
        weights, exponent = th.ones_like(advantage), th.zeros_like(advantage)
        if self.args.advantage_weighting:
            log_mu = gather_actions(sweep.log_mu[agents][:, data.now], data.actions.T[agents])
            weights, exponent = advantage_weights(advantage, log_mu, self.alpha, sweep.beta, clip)
        sweep.weights[agents] = weights
        if sweep.logging:
            clipped = (exponent > clip).float().mean(1)
            spread = advantage.std(1, correction=min(1, len(data) - 1))  # one has no deviation
            sweep.note(advantage_std=spread, weight_clipped_share=clipped)

    def _advantages(self, agents: slice, sweep: Sweep, q: th.Tensor) -> th.Tensor:
        """A_i = Q_i(s, a_i) - E_pi Q_i(s, .) of the actions in the data (Eq. 20), `[k, M]`."""
        data, q = sweep.data, q[:, sweep.data.now]
        baseline = (sweep.log_pi[agents][:, data.now].exp() * q).sum(-1)
        return gather_actions(q, data.actions.T[agents]) - baseline

    def _improve_policy(self, i: int, sweep: Sweep) -> None:
        """Eq. 20, `turn_steps` steps towards its minimum.

        The episodes are unrolled whole; D_rho is how often each transition counts.
        """
        a, data, log_policy = self.args, sweep.data, sweep.log_policies[i]
        index, weight = sweep.drawn[i]
        total = sweep.weights[i] * th.zeros_like(weight).index_add(0, index, weight)
        for step in range(a.turn_steps):
            if step:
                log_policy = self._policy(i, data)
            loss = -(total * data.taken_by(i, log_policy)).mean()
            norm = self.descend(f"policy_{i}", loss, a.grad_norm_clip)
            if sweep.logging:
                sweep.note(policy_loss=loss, policy_grad_norm=norm)

    def _mean_kl(self, sweep: Sweep) -> th.Tensor:
        """KL(pi_i || mu_i), the mean over agents that have a choice and over transitions."""
        choosing, kl, _ = self._choices(sweep)
        return (kl * choosing).sum() / choosing.sum().clamp(min=1)

    def _choices(self, sweep: Sweep) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """1 where an agent has a choice, else 0; KL and entropy of the old policies. `[n, M]`."""
        now = sweep.data.now
        log_pi = sweep.log_pi[:, now]
        choosing = (sweep.data.avail[now].sum(-1) > 1).T.float()
        return choosing, kl_divergence(log_pi, sweep.log_mu[:, now]), entropy(log_pi)

    def _adapt_temperature(self, kl: th.Tensor) -> None:
        """Eq. 25 with the sign mended, on log alpha."""
        loss = self.temperature["log_alpha"].exp() * (self.args.target_kl - kl)
        self.descend("alpha", loss, math.inf)
        low, high = self.args.alpha_range
        self.temperature["log_alpha"].data.clamp_(math.log(low), math.log(high))

    def _expected_advantages(self, sweep: Sweep) -> th.Tensor | None:
        """E|A_i| of each agent, `[n]`, where the order depends on it."""
        if self.args.agent_order != "semi_greedy":
            return None
        return self._advantages(slice(0, self.n_agents), sweep, sweep.q_bar).abs().mean(1)

    @th.no_grad()
    def _diagnose(self, sweep: Sweep) -> None:
        """What a person looks at first when a run does not learn."""
        data, numbers = sweep.data, range(self.n_agents)
        returns = data.td_lambda(th.zeros_like(data.reward), self.args.gamma, 1.0)
        q_taken = gather_actions(each(self.critics, sweep.inputs)[:, data.now], data.actions.T)
        choosing, kl, spread = self._choices(sweep)
        n_choosing = choosing.sum(1).clamp(min=1)
        full = th.stack([sweep.log_ratio[i] for i in numbers])
        power = th.stack([sweep.power[i] for i in numbers])
        given = power.unsqueeze(1) * full
        sweep.note(
            ratio_mean=given.clamp(max=80).exp().mean(1),
            ratio_exponent=power,
            ess_share=effective_share(given),
            ess_share_full=effective_share(full),
            critic_bias=(q_taken - returns).mean(1),
            critic_r2=explained_variance(q_taken, returns),
            kl_of_agent=(kl * choosing).sum(1) / n_choosing,
            entropy_of_agent=(spread * choosing).sum(1) / n_choosing,
        )
        if sweep.improving:
            sweep.note(weight_mean=sweep.weights.mean(1))

    def _log(self, sweep: Sweep, t_env: int) -> None:
        """Means over the agents, and KL and entropy of each."""
        stats = sweep.stats
        means = {key: th.cat(values).mean() for key, values in stats.items()}
        means["entropy"] = means.pop("entropy_of_agent")
        del means["kl_of_agent"]  # `kl` weighs agents by how often they have a choice
        per_agent = {
            f"{key}_agent{i}": value
            for key in ("kl", "entropy")
            for i, value in enumerate(stats[f"{key}_of_agent"][0])
        }
        further = {"alpha": self.alpha, "beta": sweep.beta, "kl": self._mean_kl(sweep)}
        self.logger.log_stats(means | further | per_agent | {"updates": self.updates}, t_env)
