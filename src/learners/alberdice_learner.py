"""AlberDICE: alternating stationary distribution correction estimation."""

from __future__ import annotations

import math

import torch as th
import torch.nn.functional as F
from torch import nn

from components.packed import PackedEpisodes
from components.transitions import Transitions
from learners.learner import Learner, optimise
from modules.autoregressive import LOG_FLOOR
from modules.critics import StateActionCritic
from modules.mlp import mlp
from utils.rl_utils import entropy, gather_actions, kl_divergence, masked_logsumexp

SMALLEST_RATIO = 1e-30  # there is something to draw from, whatever the policies
INITIAL_WEIGHTS = 1e-3  # of the policies' last layers, uniform: they start near uniform play


def absorbing_rows(packed: PackedEpisodes, terminated: th.Tensor, limit: int) -> th.Tensor:
    """How many rows of the absorbing state the ended episodes of a batch have, a 0-d tensor.

    Each is filled up to `limit` transitions, and has one such row at least. Episodes that were cut
    have none. terminated `[M]`.
    """
    left = limit - packed.time[packed.transitions] - 1
    return (terminated * left.clamp(min=1)).sum()


def others_ratio(log_pi: th.Tensor, log_mu_others: th.Tensor, i: int, largest: float) -> th.Tensor:
    """rho_i = pi^{-i}(a^{-i} | s) / mu^{-i}(a^{-i} | s, a^i), at most `largest`. `[M]`.

    log_pi `[M, n]`: log pi_j(a_j) of the actions in the data; log_mu_others `[M]`.
    """
    log_ratio = log_pi.sum(-1) - log_pi[:, i] - log_mu_others
    return log_ratio.clamp(math.log(SMALLEST_RATIO), math.log(largest)).exp()


def resample(ratio: th.Tensor, n_absorbing: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """M transitions drawn from the batch with replacement, in proportion to rho.

    ratio `[M]`; rho is 1 in the n_absorbing rows, which take their share without being drawn.
    Returns: which transitions were drawn, long `[D]`, each once and in order; their weights `[D]`,
    in proportion to how often; the weight of the absorbing state, 0-d. All weights sum to 1.
    """
    drawn = th.multinomial(ratio, len(ratio), replacement=True)
    # What was not drawn is not computed: worth a third of an update, and D a look at the device.
    rows, counts = drawn.unique(return_counts=True)
    total = ratio.sum() + n_absorbing
    return rows, counts / len(ratio) * (ratio.sum() / total), n_absorbing / total


def between(states: th.Tensor, n_absorbing: th.Tensor) -> th.Tensor:
    """Points on the lines between random pairs of rows, for the gradient penalty.

    states `[M + 1, S]`, of which the last is the absorbing one and counts n_absorbing times.
    Returns `[ceil(M / 2), S]`.
    """
    m = len(states) - 1
    pairs = (th.rand(2, (m + 1) // 2, device=states.device) * (m + n_absorbing)).long()
    first, second = states[pairs.clamp(max=m)]
    return th.lerp(first, second, th.rand(len(first), 1, device=states.device))


def gradient_penalty(network: nn.Module, points: th.Tensor) -> th.Tensor:
    """E |d network / d input|^2 at `points` `[K, S]`, differentiable in the weights. 0-d."""
    points = points.requires_grad_()
    (slope,) = th.autograd.grad(network(points).sum(), points, create_graph=True)
    return slope.square().sum(-1).mean()


class AbsorbingTransitions(Transitions):
    """Transitions whose ended episodes go on in the absorbing state.

    Further attributes:
        now_state: `[M, S]`; now_avail: `[M, n, A]`.
        log_mu: `[M, n, A]`, the individual behaviour policies.
        log_mu_others: `[M, n]`, log mu^{-i}(a^{-i} | s, a^i).
        points: `[R + 1, S + 1]`, states with the flag of the absorbing one, which is the last.
        next: long `[M]`, the row of `points` that each transition leads to.
        n_absorbing: 0-d, rows of the absorbing state.
        n_rows: 0-d, transitions and rows of the absorbing state.
    """

    def __init__(self, batch, mac, limit: int):
        super().__init__(batch, mac)
        self.now_state, self.now_avail = self.state[self.now], self.avail[self.now]
        self.log_mu = self.packed.pack(batch["behaviour_log_probs"])[self.now]
        self.log_mu_others = self.packed.pack(batch["behaviour_log_prob_others"])[self.now]
        points = F.pad(self.state, (0, 1, 0, 1))
        points[-1, -1] = 1
        self.points = points
        self.next = th.where(self.terminated > 0, len(self.state), self.then)
        self.n_absorbing = absorbing_rows(self.packed, self.terminated, limit)
        self.n_rows = len(self.now) + self.n_absorbing


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

    where D_rho are transitions drawn in proportion to rho, the sum of L(nu) is estimated from the
    same draws, and all states of the batch serve as initial states, as in the public code. Targets
    and the values in L(pi) are those before this call's steps. The temperature alpha falls
    geometrically from `alpha_start` to `alpha_end` over t_max. Adam for all, no gradient is
    clipped. nu and e see the state, the policies their histories.

    Absorbing state: an episode that ended goes on in a state of its own (zeros and a flag) for the
    rest of `episode_limit`, one row at least; an episode that was cut bootstraps. Nothing can be
    chosen there: rho = 1, K = 0, e = (gamma - 1) nu, no loss of a policy. All these rows are one
    and the same, so they enter the sums as one row that counts so many times.

    Otherwise than in the public code:
    - The absorbing state follows on the last transition at once; there, the terminal observation
      was one more state in which a step of the past was played again, and actions copied from
      random steps trained policies in the absorbing state.
    - mu_i and mu^{-i} are fitted beforehand to the same likelihood (offline.behaviour), not by one
      step a call beside the rest, and one network per agent, not one shared, gives mu_i.
    - K_i is an expectation over the actions of each other agent, not a mean of 16 samples, and the
      predecessors are drawn from the policies, not taken from the data (the same for two agents).
    - Unavailable actions are left out of the CQL term.
    - The absorbing rows' share of D_rho is exact, and the penalty takes as many pairs of rows as
      are there without them: the same expectations.

    The batch must carry, beside EPyMARL's keys,
        behaviour_log_probs `[B, T, n, A]`: log mu_i, from `offline.behaviour`;
        behaviour_log_prob_others `[B, T, n]`: log mu^{-i}(a^{-i} | s, a^i).
    """

    needs_behaviour = True

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        width, hidden = scheme["state"]["vshape"], args.critic_hidden_dim
        self.values = nn.ModuleList(mlp(width + 1, hidden, 1) for _ in range(args.n_agents))
        for network in self.values:  # L(nu) does not depend on a constant
            network[-1] = nn.Linear(hidden, 1, bias=False)
        self.advantages = nn.ModuleList(
            StateActionCritic(width, args.n_actions, hidden) for _ in range(args.n_agents)
        )
        self.networks |= {"values": self.values, "advantages": self.advantages}
        for i, network in enumerate(mac.agent.agents):
            last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
            nn.init.uniform_(last.weight, -INITIAL_WEIGHTS, INITIAL_WEIGHTS)
            groups = {
                "value": (self.values[i].parameters(), args.nu_lr),
                "advantage": (self.advantages[i].parameters(), args.nu_lr),
                "policy": (mac.agent_parameters(i), args.lr),
            }
            for name, (parameters, rate) in groups.items():
                self.optimisers[f"{name}_{i}"] = th.optim.Adam(parameters, lr=rate)
        self.others = None  # the autoregressive behaviour policy, from `start_from`

    def start_from(self, behaviour) -> None:
        """behaviour: an `offline.behaviour.Behaviour`."""
        self.others = behaviour.others

    def train(self, batch, t_env: int, episode_num: int) -> None:
        """One sweep over the agents on one batch of episodes."""
        a = self.args
        alpha = a.alpha_start * (a.alpha_end / a.alpha_start) ** min(t_env / a.t_max, 1.0)
        data = AbsorbingTransitions(batch, self.mac, a.episode_limit)
        # Each agent's graph depends on its own weights alone, so all are built before the first
        # update: the pass that tells the others what agent i plays is the one differentiated.
        policies = [self._log_policy(i, data) for i in range(self.n_agents)]
        log_pi = th.stack([policy.detach() for policy in policies], dim=1)  # [M, n, A]

        stats: list[dict[str, th.Tensor]] = []
        for i, policy in enumerate(policies):
            stats.append(self._improve(i, data, policy, log_pi, alpha))
            if i + 1 < self.n_agents:  # the agents after it see what it plays now
                with th.no_grad():
                    log_pi[:, i] = self._log_policy(i, data)

        self.updates += 1
        if self.log_due(t_env):
            means = {key: th.stack([of[key] for of in stats]).mean() for key in stats[0]}
            means |= {
                "absorbing_share": data.n_absorbing / data.n_rows,
                "kl": kl_divergence(log_pi, data.log_mu.clamp(min=LOG_FLOOR)).mean(),
                "entropy": entropy(log_pi).mean(),
            }
            self.logger.log_stats(means | {"alpha": alpha, "updates": self.updates}, t_env)

    def _log_policy(self, i: int, data: AbsorbingTransitions) -> th.Tensor:
        """log pi_i in every transition, `[M, A]`."""
        return self.mac.log_policy(i, data.inputs, data.avail, data.packed)[data.now]

    def _improve(
        self,
        i: int,
        data: AbsorbingTransitions,
        policy: th.Tensor,
        log_pi: th.Tensor,
        alpha: float,
    ) -> dict[str, th.Tensor]:
        """A step of nu_i, e_i and pi_i each.

        policy `[M, A]`: log pi_i with its graph; log_pi `[M, n, A]`: of all agents, without.
        """
        a = self.args
        others_kl = self.others.others_kl(
            i, data.now_state, data.log_mu, data.now_avail, data.actions, log_pi
        )
        taken = gather_actions(log_pi, data.actions)
        ratio = others_ratio(taken, data.log_mu_others[:, i], i, a.ratio_max)
        drawn, weight, absorbing_weight = resample(ratio, data.n_absorbing)

        # nu
        nu = self.values[i](data.points).squeeze(-1)  # [R + 1], the last one absorbing
        now_nu = nu[data.now]
        e = data.reward - alpha * others_kl + a.gamma * nu[data.next] - now_nu
        absorbing_e = (a.gamma - 1) * nu[-1:]
        mean_ratio = (ratio.sum() + data.n_absorbing) / data.n_rows
        log_weights = th.cat([weight, absorbing_weight.unsqueeze(0)]).log()
        expected = (log_weights + th.cat([e[drawn], absorbing_e]) / alpha).logsumexp(0)
        initial = (now_nu.sum() + data.n_absorbing * nu[-1]) / data.n_rows
        rows = th.cat([data.points[data.now], data.points[-1:]])
        penalty = gradient_penalty(self.values[i], between(rows, data.n_absorbing))
        nu_loss = alpha * (mean_ratio.log() + expected) + (1 - a.gamma) * initial
        nu_loss = nu_loss + a.nu_grad_penalty_coeff * penalty
        nu_norm = optimise(nu_loss, self.optimisers[f"value_{i}"], math.inf)

        # e, on the D transitions drawn
        log_mu = data.log_mu[drawn, i]  # [D, A]
        advantage = self.advantages[i](data.now_state[drawn])  # [D, A]
        error = gather_actions(advantage, data.actions[drawn, i]) - e[drawn].detach()
        cql = masked_logsumexp(advantage, data.now_avail[drawn, i]) - (
            log_mu.exp() * advantage
        ).sum(-1)
        e_loss = (weight * (error.square() + a.cql_coeff * cql)).sum()
        optimise(e_loss, self.optimisers[f"advantage_{i}"], math.inf)

        # pi, on the same: the I-projection, over all available actions
        policy = policy[drawn]
        kl = kl_divergence(policy, log_mu.clamp(min=LOG_FLOOR))
        gain = (policy.exp() * advantage.detach()).sum(-1)
        policy_loss = (weight * (alpha * kl - gain)).sum()
        policy_norm = optimise(policy_loss, self.optimisers[f"policy_{i}"], math.inf)

        return {
            "nu_loss": nu_loss.detach(),
            "nu_grad_penalty": penalty.detach(),
            "nu_grad_norm": nu_norm,
            "e_loss": e_loss.detach(),
            "e_mean": e.detach().mean(),
            "cql_loss": (weight * cql).sum().detach(),
            "policy_loss": policy_loss.detach(),
            "policy_grad_norm": policy_norm,
            "others_kl": others_kl.mean(),
            "ratio_mean": mean_ratio,
            "ess_share": ratio.sum().square() / ratio.square().sum() / len(ratio),
        }
