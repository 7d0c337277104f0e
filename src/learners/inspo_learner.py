"""InSPO: in-sample sequential policy optimisation."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch as th
from torch import nn

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.schedules import hold_decay
from inspo.components.transitions import AnnotatedTransitions
from inspo.controllers.sequential_controller import SequentialMAC
from inspo.learners.learner import Learner, StatsLogger
from inspo.learners.targets import TargetSchedule
from inspo.modules.autoregressive import LOG_FLOOR, AutoregressivePolicy
from inspo.modules.mlp import MLP
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

LOG_MU_FLOOR = -10.0  # of log mu in the exponent of Eq. 20
Resampled = tuple[th.Tensor, th.Tensor]  # index, long `[M]`, and weight `[M]`, of D_rho
BISECTIONS = 24  # of [0, 1]: to the last digit of a float


def others_log_ratio(log_pi: th.Tensor, log_mu_others: th.Tensor, i: int) -> th.Tensor:
    """log pi^{-i}(a^{-i} | s) / mu^{-i}(a^{-i} | s, a^i), the ratio of Eq. 14. `[M]`.

    log_pi `[M, n]`: log pi_j(a_j) of the actions in the data under the present policies, new ones
    of the agents already updated, old ones of the others. log_mu_others `[M]`: log mu^{-i} of
    Eq. 22. Every logarithm is held at LOG_FLOOR an agent.
    """
    log_pi = log_pi.clamp(min=LOG_FLOOR)
    return log_pi.sum(-1) - log_pi[:, i] - log_mu_others.clamp(min=LOG_FLOOR * log_pi.shape[1])


def effective_share(log_ratio: th.Tensor) -> th.Tensor:
    """The effective sample (sum rho)^2 / sum rho^2 as a share of the M transitions, `[]`."""
    first, second = log_ratio.logsumexp(0), (2 * log_ratio).logsumexp(0)
    return (2 * first - second).exp() / len(log_ratio)


def ratio_exponent(log_ratio: th.Tensor, ratio: str, n_agents: int, share: float) -> th.Tensor:
    """The power to which the ratio of Eq. 14 is raised, `[]`.

    ratio:
        geometric: 1 / (n - 1), Eq. 23.
        full: 1, Eq. 14.
        adaptive: the largest up to 1 with which the effective sample is `share` of the data. It
            falls with the exponent, so bisection finds it.
        none: 0, all transitions count alike.
    """
    fixed = {"geometric": 1 / max(n_agents - 1, 1), "full": 1.0, "none": 0.0}
    if ratio in fixed:
        return log_ratio.new_tensor(fixed[ratio])
    low, high = log_ratio.new_zeros(()), log_ratio.new_ones(())
    enough = effective_share(log_ratio) >= share
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = effective_share(middle * log_ratio) >= share
        low, high = th.where(above, middle, low), th.where(above, high, middle)
    return th.where(enough, 1.0, low)


def resample(log_rho: th.Tensor, how: str) -> Resampled:
    """A dataset D_rho drawn from the data, Eq. 15: which transitions, and their weights.

    log_rho: `[M]`.
    how:
        draw: M transitions with replacement, with probability proportional to rho, weight 1.
        weight: every transition once, in random order, with weight M rho / sum(rho): the same
            expectation without the variance of drawing.
    """
    ratio = (log_rho - log_rho.max()).exp()  # only proportions count
    if how == "draw":
        # The step that follows says what is wrong; multinomial would end the program (on a GPU).
        index = th.multinomial(ratio.nan_to_num(nan=1.0), len(ratio), replacement=True)
        return index, th.ones_like(ratio)
    index = th.randperm(len(ratio), device=ratio.device)
    return index, ratio[index] * (len(ratio) / ratio.sum())


def regulariser(log_pi: th.Tensor, log_mu: th.Tensor, alpha: th.Tensor, beta: float) -> th.Tensor:
    """alpha KL(pi || mu) - beta H(pi), what a state costs in the bracket of y in Eq. 24.

    log_pi and log_mu `[..., A]`, over the available actions -> `[...]`.
    """
    return alpha * kl_divergence(log_pi, log_mu) - beta * entropy(log_pi)


def advantage_weights(
    advantage: th.Tensor, log_mu: th.Tensor, alpha: th.Tensor, beta: float, clip: float
) -> tuple[th.Tensor, th.Tensor]:
    """exp((A - beta log mu(a)) / (alpha + beta)), Eq. 20, with the exponent cut at `clip`.

    advantage and log_mu `[M]`, of the actions in the data. Returns (weights, exponents), `[M]`.
    """
    exponent = (advantage - beta * log_mu.clamp(min=LOG_MU_FLOOR)) / (alpha + beta)
    return exponent.clamp(max=clip).exp(), exponent


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
            self.optimisers[f"critic_{i}"] = th.optim.Adam(
                self.critics[i].parameters(), lr=args.critic_lr
            )
            self.optimisers[f"policy_{i}"] = th.optim.Adam(mac.agent_parameters(i), lr=args.lr)
        self.optimisers["alpha"] = th.optim.Adam(self.temperature.parameters(), lr=args.alpha_lr)
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
        logging = self.log_due(t_env)
        data = AnnotatedTransitions(batch, self.mac, self.with_others)

        # Each agent's graph depends on its own weights alone, so all are built before the first
        # update: the pass that gives log pi of the old policies is the one that is differentiated.
        with th.set_grad_enabled(improving):
            log_policies = [self._policy(i, data) for i in range(self.n_agents)]
        old = [log_policy.detach() for log_policy in log_policies]
        # What an agent takes the others to play: new policies enter as they are updated.
        joint = list(old)
        taken = th.stack([data.taken_by(j, old[j]) for j in range(self.n_agents)], dim=-1)

        stats: dict[int, dict[str, th.Tensor]] = {}
        blocks = self.mac.draw_order(self._expected_advantages(data, log_policies))
        for block in blocks:
            for i in block:
                log_ratio = self._log_ratio(i, data, taken)
                power = ratio_exponent(log_ratio, a.ratio, self.n_agents, a.ratio_share)
                drawn = resample(power * log_ratio, a.resample)
                inputs = data.critic_inputs(i)
                with th.no_grad():
                    q_bar = self.target_critics[i](inputs)  # one pass for y (24) and for A (20)
                y = self._targets(i, data, q_bar, old[i], joint, beta)
                losses = self._improve_critic(i, data, inputs, y, drawn)
                if improving:
                    with th.no_grad():
                        q = q_bar if a.advantage_critic == "target" else self.critics[i](inputs)
                    losses |= self._improve_policy(i, data, q, log_policies[i], beta, drawn)
                if logging:
                    stats[i] = losses | self._diagnose(i, data, old[i], log_ratio, power)
            if improving and block is not blocks[-1]:
                for i in block:
                    with th.no_grad():
                        joint[i] = self._policy(i, data)
                    taken[:, i] = data.taken_by(i, joint[i])

        kl = self._mean_kl(data, log_policies)
        if a.tune_alpha and improving:
            self._adapt_temperature(kl)
        self.updates += 1
        if logging:
            self._log(stats, {"alpha": self.alpha, "beta": beta, "kl": kl}, t_env)

    def _log_ratio(self, i: int, data: AnnotatedTransitions, taken: th.Tensor) -> th.Tensor:
        """The log-ratio of Eq. 14, `[M]`; 0 where mu^{-i} was not fitted. taken `[M, n]`."""
        if data.log_mu_others is None:
            return th.zeros_like(data.reward)
        return others_log_ratio(taken, data.log_mu_others[:, i], i)

    def _policy(self, i: int, data: AnnotatedTransitions) -> th.Tensor:
        """log pi_i as it is now, `[R, A]`."""
        return self.mac.log_policy(i, data.inputs, data.avail, data.packed)

    def _targets(
        self,
        i: int,
        data: AnnotatedTransitions,
        q_bar: th.Tensor,
        log_pi: th.Tensor,
        joint: list[th.Tensor],
        beta: float,
    ) -> th.Tensor:
        """y of Eq. 24, `[M]`. q_bar and log_pi `[R, A]`; joint: log pi_j of every agent."""
        a = self.args
        expected_q = (log_pi.exp() * q_bar).sum(-1)[data.then]
        cost = self.alpha * kl_divergence(log_pi, data.log_mu[:, i]) - beta * entropy(log_pi)
        # Paid with the reward, not with V: so it counts alike for every lambda.
        reward = data.reward - a.gamma * (1 - data.terminated) * cost[data.then]
        if a.joint_kl_coef:
            reward = reward - a.joint_kl_coef * self.alpha * self._others_kl(i, data, joint)
        return data.td_lambda(expected_q, a.gamma, a.td_lambda, reward)

    @th.no_grad()
    def _others_kl(self, i: int, data: AnnotatedTransitions, joint: list[th.Tensor]) -> th.Tensor:
        """K_i(s, a_i) = E_{pi^-i} log pi^{-i}(a^{-i}) / mu^{-i}(a^{-i} | s, a_i), `[M]`.

        The share of the joint KL(pi || mu) that Eq. 24 leaves out.
        """
        now = data.now
        log_pi = th.stack([policy[now] for policy in joint], dim=1)  # [M, n, A]
        assert self.others is not None
        return self.others.others_kl(
            i, data.state[now], data.log_mu[now], data.avail[now], data.actions, log_pi
        )

    def _improve_critic(
        self, i: int, data: AnnotatedTransitions, inputs: th.Tensor, y: th.Tensor, drawn: Resampled
    ) -> dict[str, th.Tensor]:
        """Eq. 24, `turn_steps` passes over D_rho in minibatches of `critic_minibatch` transitions.

        inputs `[R, S + I]`; y `[M]`, the targets.
        """
        a = self.args
        now, (index, weight) = data.now, drawn
        critic, target = self.critics[i], self.target_critics[i]
        inputs, avail, mu = inputs[now], data.avail[now, i], data.log_mu[now, i].exp()

        size = a.critic_minibatch or len(index)
        td, cql, norms = [], [], []
        minibatches = list(zip(index.split(size), weight.split(size)))
        for rows, w in minibatches * a.turn_steps:
            q = critic(inputs[rows])
            error = gather_actions(q, data.actions[rows, i]) - y[rows]
            penalty = masked_logsumexp(q, avail[rows]) - (mu[rows] * q).sum(-1)
            td.append((w * error.square()).mean())
            cql.append((w * penalty).mean())
            loss = td[-1] + a.cql_alpha * cql[-1]
            norms.append(self.descend(f"critic_{i}", loss, a.grad_norm_clip))
            soft_update(target, critic, a.target_tau)
        return {
            "critic_loss": th.stack(td).mean().detach(),
            "cql_loss": th.stack(cql).mean().detach(),
            "critic_grad_norm": th.stack(norms).mean(),
            "target_mean": y.mean(),
        }

    def _improve_policy(
        self,
        i: int,
        data: AnnotatedTransitions,
        q: th.Tensor,
        log_policy: th.Tensor,
        beta: float,
        drawn: Resampled,
    ) -> dict[str, th.Tensor]:
        """Eq. 20, `turn_steps` steps towards its minimum: the weights are those of the old policy.

        The episodes are unrolled whole; D_rho is how often each transition counts.
        q and log_policy: `[R, A]`.
        """
        a = self.args
        advantage = data.advantage(i, q, log_policy.detach())
        if a.advantage_weighting:
            log_mu = data.taken_by(i, data.log_mu[:, i])
            w, exponent = advantage_weights(advantage, log_mu, self.alpha, beta, a.weight_clip)
        else:
            w, exponent = th.ones_like(advantage), th.zeros_like(advantage)
        index, weight = drawn
        total = w * th.zeros_like(weight).index_add(0, index, weight)
        losses, norms = [], []
        for step in range(a.turn_steps):
            if step:
                log_policy = self._policy(i, data)
            losses.append(-(total * data.taken_by(i, log_policy)).mean())
            norms.append(self.descend(f"policy_{i}", losses[-1], a.grad_norm_clip))
        return {
            "policy_loss": th.stack(losses).mean().detach(),
            "policy_grad_norm": th.stack(norms).mean(),
            "advantage_std": advantage.std(),
            "weight_mean": w.mean(),
            "weight_clipped_share": (exponent > a.weight_clip).float().mean(),
        }

    def _mean_kl(self, data: AnnotatedTransitions, log_policies: list[th.Tensor]) -> th.Tensor:
        """KL(pi_i || mu_i), the mean over agents that have a choice and over transitions."""
        now = data.now
        total = count = data.reward.new_zeros(())
        for i, log_policy in enumerate(log_policies):
            choosing = (data.avail[now, i].sum(-1) > 1).float()
            kl = kl_divergence(log_policy.detach()[now], data.log_mu[now, i])
            total, count = total + (kl * choosing).sum(), count + choosing.sum()
        return total / count.clamp(min=1)

    def _adapt_temperature(self, kl: th.Tensor) -> None:
        """Eq. 25 with the sign mended, on log alpha."""
        loss = self.temperature["log_alpha"].exp() * (self.args.target_kl - kl)
        self.descend("alpha", loss, math.inf)
        low, high = self.args.alpha_range
        self.temperature["log_alpha"].data.clamp_(math.log(low), math.log(high))

    def _expected_advantages(
        self, data: AnnotatedTransitions, log_policies: list[th.Tensor]
    ) -> th.Tensor | None:
        """E|A_i| of each agent, `[n]`, where the order depends on it."""
        if self.args.agent_order != "semi_greedy":
            return None
        expected = []
        for i, log_policy in enumerate(log_policies):
            with th.no_grad():
                q_bar = self.target_critics[i](data.critic_inputs(i))
            expected.append(data.advantage(i, q_bar, log_policy.detach()).abs().mean())
        return th.stack(expected)

    @th.no_grad()
    def _diagnose(
        self, i: int, data: AnnotatedTransitions, old: th.Tensor, full: th.Tensor, power: th.Tensor
    ) -> dict[str, th.Tensor]:
        """What a person looks at first when a run does not learn.

        old: log pi_i `[R, A]`; full: the log-ratio of Eq. 14 `[M]`, and the `power` it was given.
        """
        now = data.now
        returns = data.td_lambda(th.zeros_like(data.reward), self.args.gamma, 1.0)
        q = self.critics[i](data.critic_inputs(i)[now])
        q_taken = gather_actions(q, data.actions[:, i])
        choosing = (data.avail[now, i].sum(-1) > 1).float()
        n_choosing = choosing.sum().clamp(min=1)
        kl = kl_divergence(old[now], data.log_mu[now, i])
        return {
            "ratio_mean": (power * full).clamp(max=80).exp().mean(),
            "ratio_exponent": power,
            "ess_share": effective_share(power * full),
            "ess_share_full": effective_share(full),
            "critic_bias": (q_taken - returns).mean(),
            "critic_r2": explained_variance(q_taken, returns),
            "kl_of_agent": (kl * choosing).sum() / n_choosing,
            "entropy_of_agent": (entropy(old[now]) * choosing).sum() / n_choosing,
        }

    def _log(
        self,
        stats: dict[int, dict[str, th.Tensor]],
        further: dict[str, th.Tensor | float],
        t_env: int,
    ) -> None:
        """Means over the agents, and KL and entropy of each. stats: by agent."""
        rows = list(stats.values())
        means = {key: th.stack([row[key] for row in rows]).mean() for key in rows[0]}
        means["entropy"] = means.pop("entropy_of_agent")
        del means["kl_of_agent"]  # `kl` weighs agents by how often they have a choice
        per_agent = {
            f"{key}_agent{i}": of[f"{key}_of_agent"]
            for key in ("kl", "entropy")
            for i, of in stats.items()
        }
        self.logger.log_stats(means | further | per_agent | {"updates": self.updates}, t_env)
