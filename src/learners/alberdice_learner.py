"""AlberDICE: alternating stationary distribution correction estimation."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.packed import to_device
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.controllers.sequential_controller import SequentialMAC
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.modules.autoregressive import LOG_FLOOR, AutoregressivePolicy, ConditionalPolicy
from inspo.modules.critics import StateActionCritic
from inspo.modules.mlp import MLP
from inspo.modules.module_list import ListOf
from inspo.utils.errors import ConfigError
from inspo.utils.rl_utils import (
    entropy,
    gather_actions,
    kl_divergence,
    masked_log_softmax,
    masked_logsumexp,
)
from inspo.utils.settings import Settings

SMALLEST_RATIO = 1e-30  # there is something to draw from, whatever the policies
INITIAL_WEIGHTS = 1e-3  # of the policies' last layers: they, and the data's, start near uniform


def others_ratio(log_pi: th.Tensor, log_mu: th.Tensor, largest: float) -> th.Tensor:
    """rho_i = pi^{-i}(a^{-i} | s) / mu^{-i}(a^{-i} | s, a^i), at most `largest`. `[M]`.

    log_pi and log_mu `[M, n - 1]`, of the other agents' actions in the data.
    """
    log_ratio = (log_pi - log_mu).sum(-1)
    return log_ratio.clamp(math.log(SMALLEST_RATIO), math.log(largest)).exp()


def resample(ratio: th.Tensor, n_still: int) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """M transitions drawn from the batch with replacement, in proportion to rho.

    ratio `[M]`; rho is 1 in n_still further rows, which take their share without being drawn.
    Returns: which transitions were drawn, long `[D]`; their weights `[D]`; the weight of each of
    the further rows, 0-d. All sum to 1.
    """
    # The step that follows says what is wrong; multinomial would end the program (on a GPU).
    drawn = th.multinomial(ratio.nan_to_num(nan=1.0), len(ratio), replacement=True)
    rows, counts = drawn, th.ones_like(ratio)
    if ratio.device.type == "cpu":  # each once: a third less to compute; a GPU would be waited for
        rows, counts = drawn.unique(return_counts=True)
    total = ratio.sum() + n_still
    return rows, counts / len(ratio) * (ratio.sum() / total), 1 / total


def between(states: th.Tensor, n_absorbing: int) -> th.Tensor:
    """Points on the lines between random pairs of rows, for the gradient penalty.

    states `[N + 1, S]`, of which the last is the absorbing one and counts n_absorbing times.
    Returns `[ceil(N / 2), S]`.
    """
    n = len(states) - 1
    pairs = (th.rand(2, (n + 1) // 2, device=states.device) * (n + n_absorbing)).long()
    first, second = states[pairs.clamp(max=n)]
    return th.lerp(first, second, th.rand(len(first), 1, device=states.device))


def gradient_penalty(network: nn.Sequential, points: th.Tensor) -> th.Tensor:
    """E |d network / d input|^2 at `points` `[K, S]`, differentiable in the weights. 0-d.

    network: linear layers with ReLU between them and one output. Which units are active does not
    change with the weights, but for a null set, so their masks need no gradient.
    """
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    active, x = [], points
    with th.no_grad():
        for layer in linear[:-1]:
            x = layer(x).relu_()
            active.append((x > 0).to(x.dtype))
    slope = linear[-1].weight.expand(len(points), -1)
    for layer, mask in zip(reversed(linear[:-1]), reversed(active)):
        slope = (slope * mask) @ layer.weight
    return slope.square().sum(-1).mean()


class AbsorbingTransitions(Transitions):
    """Transitions whose ended episodes go on, up to `limit` transitions in all.

    From the terminal observation they go to the absorbing state, and stay there.

    Further attributes:
        now_state: `[M, S]`; now_avail: `[M, n, A]`.
        points: `[R + 1, S + 1]`, states with the flag of the absorbing one, which is the last.
        ends: long `[N]`, the rows of terminal observations from which an episode goes on.
        n_absorbing: rows in which an episode is in the absorbing state.
        n_still: rows in which nothing can be chosen: N + n_absorbing.
    """

    def __init__(self, batch: EpisodeBatch, mac: BasicMAC, limit: int) -> None:
        super().__init__(batch, mac)
        self.now_state, self.now_avail = self.state[self.now], self.avail[self.now]
        self.points = F.pad(self.state, (0, 1, 0, 1))
        self.points[-1, -1] = 1
        left = (limit - batch.lengths).clip(0) * batch.ended  # transitions after the last one
        packed, goes_on = self.packed, left > 0
        last = packed.time_of_rows == batch.lengths[packed.episode_of_rows]
        (ends,) = (last & goes_on[packed.episode_of_rows]).nonzero()
        self.ends = to_device(ends, self.state.device)
        self.n_absorbing = int((left - goes_on).sum())
        self.n_still = len(self.ends) + self.n_absorbing


class AlberDICELearner(Learner):
    r"""AlberDICE (Matsunaga et al. 2023, arXiv 2311.02194), discrete actions.

    For each agent i in turn, in the order 0, ..., n - 1, on the same batch, with the policies of
    the agents before it already updated:

    .. math::
        \rho_i &= \min\Big(\frac{\pi^{-i}(a^{-i}|s)}{\mu^{-i}(a^{-i}|s, a_i)}, \rho_{max}\Big) \\
        e_i &= r - \alpha K_i(s, a_i) + \gamma \nu_i(s') - \nu_i(s), \quad
            K_i = KL\big(\pi^{-i}(\cdot|s) \| \mu^{-i}(\cdot|s, a_i)\big) \\
        L(\nu_i) &= \alpha \log \frac1n \sum_k \rho_i(k) e^{e_i(k) / \alpha}
            + (1 - \gamma) \operatorname{mean}_k \nu_i(s_k)
            + c_{gp} E \|\nabla_s \nu_i(\tilde s)\|^2 \\
        L(e_{\theta_i}) &= E_{D_\rho} \Big[(e_\theta(s, a_i) - e_i)^2 + c_{CQL} \big(
            \log \textstyle\sum_b e^{e_\theta(s, b)}
            - \sum_b \mu_i(b|s) e_\theta(s, b)\big)\Big] \\
        L(\pi_i) &= E_{D_\rho} \Big[\alpha KL(\pi_i \| \mu_i)(s)
            - \textstyle\sum_b \pi_i(b|s) e_\theta(s, b)\Big]

    and first the data policies, mu_i once a call and mu^{-i} (j in their order, given the actions
    of agent i and of those before j) for each agent, take a step up their log-likelihood. All of it
    is learnt side by side, unless `data_policies` is fitted: then they are InSPO's, fitted before,
    and the batch carries `behaviour_log_probs` `[B, T, n, A]`, log mu_i.

    D_rho are transitions drawn in proportion to rho; the sum of L(nu) is
    estimated from the same draws, and all states of the batch serve as initial states, as in the
    public code. What a loss takes from another network is from before this call's steps, but for
    the policies of the agents before i. The temperature alpha falls geometrically from
    `alpha_start` to `alpha_end` over t_max. Adam for all, no gradient is clipped. nu and e see the
    state, the policies their histories.

    Absorbing state: an episode that ended goes on from its terminal observation to a state of its
    own (zeros and a flag), and stays there for the rest of `episode_limit`. An episode that was
    cut, or that ended at the limit, bootstraps: a one-step game is one that is played for ever, as
    the published matrix games are. Nothing can be chosen after the end: rho = 1, K = 0, r = 0, no
    loss of a policy. All rows of the absorbing state are one and the same, with
    e = (gamma - 1) nu, so they enter the sums as one row that counts so many times.

    Otherwise than in the public code:
    - Keys that are not published: `ending` mean lets every step after the end pay the batch's mean
      alpha K, which would else be saved by ending early; `kl_coef` weighs K, and `use_ratio` False
      sets rho to 1 (controls).
    - Nothing is learnt from what is played after the end; there, actions copied from random steps
      are.
    - Policies and mu_i may be recurrent; mu_i has a network for each agent, not one for all.
    - K_i is an expectation over each other agent's actions, not a mean of 16 samples. Its
      predecessors are those in the data, which D_rho draws as the policies would.
    - No loss counts the padding of episodes that were cut.
    - Unavailable actions are left out of the CQL term.
    - The absorbing rows' share of D_rho is exact, and the penalty takes as many pairs of rows as
      are there without them: the same expectations.
    """

    mac: SequentialMAC

    def __init__(
        self, mac: SequentialMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        if args.init_from_behaviour and not self.needs_behaviour:
            raise ConfigError(
                "init_from_behaviour: expected False with data_policies=online, since there is "
                "nothing fitted to begin with. Take data_policies=fitted"
            )
        width, hidden = scheme["state"]["vshape"], args.critic_hidden_dim
        self.values: ListOf[MLP] = ListOf(MLP(width + 1, hidden, 1) for _ in range(args.n_agents))
        for network in self.values:  # L(nu) does not depend on a constant
            network[-1] = nn.Linear(hidden, 1, bias=False)
        self.advantages: ListOf[StateActionCritic] = ListOf(
            StateActionCritic(width, args.n_actions, hidden) for _ in range(args.n_agents)
        )
        for i in range(args.n_agents):
            layers = [m for m in mac.agent.agent(i).modules() if isinstance(m, nn.Linear)]
            nn.init.uniform_(layers[-1].weight, -INITIAL_WEIGHTS, INITIAL_WEIGHTS)
        self.fitted: AutoregressivePolicy | None = None  # from `start_from`
        self.data_policies = copy.deepcopy(mac.agent)
        self.others: ListOf[ConditionalPolicy] = ListOf(
            ConditionalPolicy(i, width, args.n_agents, args.n_actions, hidden)
            for i in range(0 if self.needs_behaviour else args.n_agents)
        )
        self.networks |= {"values": self.values, "advantages": self.advantages}
        if not self.needs_behaviour:
            self.networks |= {"data_policies": self.data_policies, "others": self.others}
            data_policies = self.data_policies.parameters()
            self.optimisers["data"] = adam(data_policies, args.data_lr)
        for i in range(args.n_agents):
            critics = [*self.values[i].parameters(), *self.advantages[i].parameters()]
            groups = [(critics, args.nu_lr), (mac.agent_parameters(i), args.lr)]
            if not self.needs_behaviour:
                groups.append((list(self.others[i].parameters()), args.data_lr))
            self.optimisers[f"agent_{i}"] = adam(
                [{"params": parameters, "lr": rate} for parameters, rate in groups]
            )

    @classmethod
    def fits_behaviour(cls, args: Settings) -> bool:
        return args.data_policies == "fitted"

    def start_from(self, behaviour: Any) -> None:
        """behaviour: an `offline.behaviour.Behaviour`, the data's policies."""
        self.fitted = behaviour.others
        if self.args.init_from_behaviour:
            self.mac.agent.load_state_dict(behaviour.agent)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        """One sweep over the agents on one batch of episodes."""
        a = self.args
        alpha = a.alpha_start * (a.alpha_end / a.alpha_start) ** min(t_env / a.t_max, 1.0)
        data = AbsorbingTransitions(batch, self.mac, a.episode_limit)
        # Each agent's graph depends on its own weights alone, so all are built before the first
        # update: the pass that tells the others what agent i plays is the one differentiated.
        policies = [self._log_policy(i, data) for i in range(self.n_agents)]
        log_pi = th.stack([policy.detach() for policy in policies], dim=1)  # [M, n, A]
        log_mu, data_loss = self._clone(data)

        stats: list[dict[str, th.Tensor]] = []
        for i, policy in enumerate(policies):
            stats.append(self._improve(i, data, policy, log_pi, log_mu, alpha))
            if i + 1 < self.n_agents:  # the agents after it see what it plays now
                with th.no_grad():
                    log_pi[:, i] = self._log_policy(i, data)

        self.updates += 1
        if self.log_due(t_env):
            means = {key: th.stack([of[key] for of in stats]).mean() for key in stats[0]}
            means |= {
                "kl": kl_divergence(log_pi, log_mu.clamp(min=LOG_FLOOR)).mean(),
                "data_loss": data_loss,
                "entropy": entropy(log_pi).mean(),
            }
            still_share = data.n_still / (len(data) + data.n_still)
            further = {"alpha": alpha, "still_share": still_share, "updates": self.updates}
            self.logger.log_stats(means | further, t_env)

    def _log_policy(self, i: int, data: AbsorbingTransitions) -> th.Tensor:
        """log pi_i in every transition, `[M, A]`."""
        return self.mac.log_policy(i, data.inputs, data.avail, data.packed)[data.now]

    def _clone(self, data: AbsorbingTransitions) -> tuple[th.Tensor, th.Tensor]:
        """A step of the data policies. Returns log mu `[M, n, A]` before it, and the loss."""
        if self.needs_behaviour:
            log_mu = data.batch.rows("behaviour_log_probs")[data.now]
            return log_mu, -gather_actions(log_mu, data.actions).mean()
        logits = self.data_policies.unroll(data.inputs, data.packed)[data.now]
        log_mu = masked_log_softmax(logits, data.now_avail)
        loss = -gather_actions(log_mu, data.actions).mean()
        self.descend("data", loss, math.inf)
        return log_mu.detach(), loss.detach()

    def _improve(
        self,
        i: int,
        data: AbsorbingTransitions,
        policy: th.Tensor,
        log_pi: th.Tensor,
        log_mu: th.Tensor,
        alpha: float,
    ) -> dict[str, th.Tensor]:
        """A step of mu^{-i}, nu_i, e_i and pi_i each.

        policy `[M, A]`: log pi_i with its graph; log_pi and log_mu `[M, n, A]`: of all agents,
        without.
        """
        a = self.args
        ratio, others_kl, others_loss = self._others(i, data, log_pi, log_mu)
        drawn, weight, still_weight = resample(ratio, data.n_still)
        e, nu_losses = self._value_loss(
            i, data, alpha, ratio, others_kl, drawn, weight, still_weight
        )

        # e, on the D transitions drawn
        own_mu = log_mu[drawn, i]  # [D, A]
        advantage = self.advantages[i](data.now_state[drawn])  # [D, A]
        error = gather_actions(advantage, data.actions[drawn, i]) - e[drawn].detach()
        cql = masked_logsumexp(advantage, data.now_avail[drawn, i])
        cql = cql - (own_mu.exp() * advantage).sum(-1)
        e_loss = (weight * (error.square() + a.cql_coeff * cql)).sum()

        # pi, on the same: the I-projection, over all available actions
        policy = policy[drawn]
        kl = kl_divergence(policy, own_mu.clamp(min=LOG_FLOOR))
        gain = (policy.exp() * advantage.detach()).sum(-1)
        policy_loss = (weight * (alpha * kl - gain)).sum()

        # Each loss has weights of its own, so one step of their sum is a step of each.
        loss = others_loss + nu_losses["nu_loss"] + e_loss + policy_loss
        norm = self.descend(f"agent_{i}", loss, math.inf)
        return {key: value.detach() for key, value in nu_losses.items()} | {
            "e_loss": e_loss.detach(),
            "e_mean": e.detach().mean(),
            "cql_loss": (weight * cql).sum().detach(),
            "policy_loss": policy_loss.detach(),
            "others_loss": others_loss.detach(),
            "others_kl": others_kl.mean(),
            "grad_norm": norm,
            "ess_share": ratio.sum().square() / ratio.square().sum() / len(ratio),
        }

    def _others(
        self, i: int, data: AbsorbingTransitions, log_pi: th.Tensor, log_mu: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """rho_i and K_i, both `[M]` and without gradient, and the loss of mu^{-i}."""
        others = [j for j in range(self.n_agents) if j != i]
        rows = data.now_avail, data.actions
        if self.fitted:
            with th.no_grad():
                found = self.fitted.log_policies(i, data.now_state, log_mu, *rows)
            log_mu_others = found[:, others]
        else:
            log_mu_others = self.others[i](data.now_state, *rows)
        others_kl = kl_divergence(
            log_pi[:, others], log_mu_others.detach().clamp(min=LOG_FLOOR)
        ).sum(-1)
        log_mu_taken = gather_actions(log_mu_others, data.actions[:, others])  # [M, n - 1]
        loss = -log_mu_taken.sum() / max(log_mu_taken.numel(), 1)
        log_pi_taken = gather_actions(log_pi, data.actions)[:, others]
        ratio = others_ratio(log_pi_taken, log_mu_taken.detach(), self.args.ratio_max)
        if not self.args.use_ratio:
            ratio = th.ones_like(ratio)
        return ratio, others_kl, loss

    def _value_loss(
        self,
        i: int,
        data: AbsorbingTransitions,
        alpha: float,
        ratio: th.Tensor,
        others_kl: th.Tensor,
        drawn: th.Tensor,
        weight: th.Tensor,
        still_weight: th.Tensor,
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """e_i of the data's transitions, `[M]`, and L(nu_i) with its parts.

        ratio and others_kl `[M]`; drawn and weight `[D]`: the transitions of D_rho; still_weight:
        the weight of a row in which nothing can be chosen.
        """
        a = self.args
        nu = self.values[i](data.points).squeeze(-1)  # [R + 1], the last one absorbing
        now_nu, end_nu, absorbing_nu = nu[data.now], nu[data.ends], nu[-1:]
        cost = alpha * a.kl_coef * others_kl
        e = data.reward - cost + a.gamma * nu[data.then] - now_nu
        end_cost = cost.mean() if a.ending == "mean" else 0.0
        end_e = a.gamma * absorbing_nu - end_nu - end_cost
        absorbing_e = (a.gamma - 1) * absorbing_nu - end_cost
        n_rows = len(data) + data.n_still
        mean_ratio = (ratio.sum() + data.n_still) / n_rows
        all_e = th.cat([e[drawn], end_e, absorbing_e])
        absorbing_weight = (data.n_absorbing * still_weight).unsqueeze(0)
        all_weights = th.cat([weight, still_weight.expand(len(end_e)), absorbing_weight])
        expected = (all_weights.log() + all_e / alpha).logsumexp(0)
        initial = now_nu.sum() + end_nu.sum() + data.n_absorbing * nu[-1]
        rows = th.cat([data.points[data.now], data.points[data.ends], data.points[-1:]])
        penalty = gradient_penalty(self.values[i], between(rows, data.n_absorbing))
        loss = alpha * (mean_ratio.log() + expected) + (1 - a.gamma) * initial / n_rows
        loss = loss + a.nu_grad_penalty_coeff * penalty
        return e, {"nu_loss": loss, "nu_grad_penalty": penalty, "ratio_mean": mean_ratio}
