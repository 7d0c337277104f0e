"""Values and a policy taken from them: IQL, AWAC, TD3+BC and what lies between them."""

from __future__ import annotations

import copy
from typing import Any

import torch as th
from torch import nn

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.cfcql_learner import counterfactual_values
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.learners.targets import TargetSchedule
from inspo.modules.critics import DuelingCritic, JointCritic
from inspo.modules.mixers import REGISTRY as mixer_REGISTRY
from inspo.modules.mlp import MLP
from inspo.modules.module_list import ListOf
from inspo.utils.errors import named
from inspo.utils.rl_utils import draw, gather_actions, masked_log_softmax, soft_update
from inspo.utils.settings import Settings

SMALLEST_SCALE = 1e-3  # of values that are divided by their size or spread


def expectile_loss(difference: th.Tensor, expectile: float) -> th.Tensor:
    """|expectile - 1(u < 0)| u^2, whose least mean is at that expectile of u. Any shape."""
    return th.where(difference < 0, 1 - expectile, expectile) * difference.square()


def spread(values: th.Tensor) -> th.Tensor:
    """mean |Q - mean Q|, what SVN divides values and targets by, without gradient. 0-d."""
    values = values.detach()
    return (values - values.mean()).abs().mean().clamp(min=SMALLEST_SCALE)


def regression_weights(advantage: th.Tensor, inverse: float, largest: float) -> th.Tensor:
    """min(exp(beta A), largest), of any shape; `inverse` is beta, an inverse temperature."""
    return (inverse * advantage).exp().clamp(max=largest)


class ValuesLearner(Learner):
    r"""One learner for the offline methods made of a decomposition, a target and an extraction.

    `decomposition`: what a value is of. `independent`: :math:`Q_i(s, o_i, a_i)` for each agent, of
    the team's return; `vdn`: their sum; `qmix`: mixed monotonically (Rashid et al. 2018);
    `central`: :math:`Q(s, a_1, \dots, a_n)` of joint actions. Below, Q is any of these, and the bar
    marks target networks (soft updates) and the smaller one of twin critics.

    `target`: with :math:`V` as in one of

    .. math::
        y &= r + \gamma (1 - d) V(s') \quad (\text{or the TD}(\lambda) \text{ return on } V), \qquad
        L_Q = \operatorname{mean} (Q(s, a) - y)^2 \\
        \text{expectile:} \quad L_V &= \operatorname{mean} |\tau - 1(u < 0)| u^2, \quad
            u = \bar Q(s, a) - V \\
        \text{policy:} \quad V(s') &= E_{a' \sim \pi} \bar Q(s', a'), \qquad
        \text{sarsa:} \quad V(s') = \bar Q(s', a'), \quad a' \text{ from the data}

    (IQL, Kostrikov et al. 2021, arXiv 2110.06169, Eqs. 5, 6; AWAC, Nair et al. 2020, arXiv
    2006.09359). Where values are mixed, u and V are each agent's own and :math:`V(s')` mixes the
    agents' V, and their expectations under the policy, by the target mixer; for `qmix`, whose mixer
    is not linear, that is not the expectation of the mixture. The expectation of `central` is one
    draw. An episode that was cut has no action in its last row: there `sarsa` is `policy`.

    `extraction`: with :math:`q_i(b) = Q(s, b, a_{-i})`, what agent i's action is worth beside what
    the others did (`independent`: :math:`Q_i(b)`), and no gradient through any Q or A,

    .. math::
        \text{awr:} \quad L_\pi &= -\operatorname{mean} \min(e^{\beta A_i}, w_{max})
            \log \pi_i(a_i | \tau_i), \quad
            A_i = \bar q_i(a_i) - \bar q_i(V_i) \text{ or } \bar q_i(a_i) - E_{\pi_i} \bar q_i \\
        \text{brac:} \quad L_\pi &= -\operatorname{mean} \log \pi_i(a_i | \tau_i)
            - \frac{\alpha}{\operatorname{mean} |q_i(a_i)|} \operatorname{mean} E_{\pi_i} q_i \\
        \text{bc:} \quad L_\pi &= -\operatorname{mean} \log \pi_i(a_i | \tau_i)

    (AWAC, Eq. 13; TD3+BC, Fujimoto and Gu 2021, arXiv 2106.06860, Eq. 5, with the cross-entropy in
    place of the squared distance). With the expectile target :math:`\bar q_i(V_i)` is the value
    with :math:`V_i` in the place of agent i's, and for `central` A is :math:`\bar Q - V(s)`, the
    same for all agents. brac takes the first online critic, awr the targets.

    Keys: `value_normalisation` divides L_Q by (mean \|Q - mean Q\|)^2, which is SVN: the values and
    targets it compares are shifted by the same mean. `cap_targets` keeps y below the largest
    discounted return from any step of the data so far (B3C, arXiv 2501.18138). `policy_delay`: the
    policy takes one step for so many of the critics. All losses of a call come from one pass.

    Otherwise than in the public code (docs/baselines.md names the files): twins have nothing in
    common; the transition that ends an episode counts, padding does not; log-probabilities are
    over available actions; the learning rate is constant.
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.state_dim, self.obs_dim = scheme["state"]["vshape"], scheme["obs"]["vshape"]
        self.central = args.decomposition == "central"
        n_critics = 2 if args.twin else 1
        self.critics: ListOf[Any] = ListOf(self._critic(args.n_actions) for _ in range(n_critics))
        self.target_critics = copy.deepcopy(self.critics)
        self.best = nn.ParameterDict({"return": th.tensor(th.finfo(th.float32).min)})
        self.best.requires_grad_(False)
        self.networks |= {
            "critics": self.critics,
            "target_critics": self.target_critics,
            "best": self.best,
        }
        parameters = list(self.critics.parameters())
        self.online: list[nn.Module] = [self.critics]
        self.slow: list[nn.Module] = [self.target_critics]
        if not self.central:
            self.mixer = named(mixer_REGISTRY, args.decomposition, "decomposition")(args)
            self.target_mixer = copy.deepcopy(self.mixer)
            self.networks |= {"mixer": self.mixer, "target_mixer": self.target_mixer}
            self.online.append(self.mixer)
            self.slow.append(self.target_mixer)
            parameters += self.mixer.parameters()
        self.optimisers["critics"] = adam(parameters, args.critic_lr)
        if args.target == "expectile":
            self.value = self._critic(1)
            self.networks["value"] = self.value
            self.optimisers["value"] = adam(self.value.parameters(), args.critic_lr)
        self.optimisers["policy"] = adam(mac.parameters(), args.lr)

    def _critic(self, outputs: int) -> nn.Module:
        """Of joint actions or the state alone (outputs 1) if central; otherwise for each agent."""
        a, hidden = self.args, self.args.critic_hidden_dim
        if not self.central:
            return DuelingCritic(self.state_dim, self.obs_dim, a.n_agents, outputs, hidden)
        if outputs == 1:
            return MLP(self.state_dim, hidden, 1)
        return JointCritic(self.state_dim, a.n_agents, outputs, hidden)

    def target_schedule(self, updates: int, transitions: float) -> TargetSchedule:
        return TargetSchedule(updates, self.args.target_tau, self.args.td_lambda)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        a = self.args
        data = Transitions(batch, self.mac)
        logits = self.mac.agent.unroll(data.inputs, data.packed)
        log_pi = masked_log_softmax(logits, data.avail)  # [R, n, A]
        totals, q = self._totals(data)
        values = self._values(data) if a.target == "expectile" else None  # [R] or [R, n]
        target_q = self._target_q(data)
        targets = self._targets(data, log_pi.detach(), target_q, values)

        losses = {"critics": self._critic_loss(totals, targets)}
        if values is not None:
            taken = self._at_actions(target_q, data)
            losses["value"] = expectile_loss(taken - values[data.now], a.expectile).mean()
        stats = {"target_mean": targets.mean()}
        if self.updates % a.policy_delay == 0:
            losses["policy"], told = self._policy_loss(data, log_pi, q, target_q, values)
            stats |= told
        every = th.stack([*losses.values()])
        norms = dict(zip(losses, self.descend_each([*losses], every, a.grad_norm_clip)))
        soft_update(self.slow, self.online, a.target_tau)
        self.updates += 1
        if self.log_due(t_env):
            stats |= {f"{name}_loss": loss.detach() for name, loss in losses.items()}
            stats |= {f"{name}_grad_norm": norm for name, norm in norms.items()}
            self.logger.log_stats(stats, t_env)

    # Values

    def _totals(self, data: Transitions) -> tuple[list[th.Tensor], th.Tensor | None]:
        """Every critic's Q of the data, `[M]`, or `[M, n]` if independent, and what the first one
        says of all actions, `[M, n, A]` without gradient (None if central)."""
        state = data.state[data.now]
        if self.central:
            return [critic(state, data.actions) for critic in self.critics], None
        obs, mixing = data.obs[data.now], self.mixer.weights(state)
        q = [critic(state, obs) for critic in self.critics]
        return [mixing.mix(gather_actions(each, data.actions)) for each in q], q[0].detach()

    def _values(self, data: Transitions) -> th.Tensor:
        """V of all filled steps, `[R, n]`, or `[R]` if central."""
        inputs = (data.state,) if self.central else (data.state, data.obs)
        values: th.Tensor = self.value(*inputs)
        return values.squeeze(-1)

    @th.no_grad()
    def _target_q(self, data: Transitions) -> th.Tensor:
        """The smaller of the target critics' values, of all actions in all filled steps,
        `[R, n, A]`; if central, of the data's joint actions, `[M]`."""
        if self.central:
            state = data.state[data.now]
            return th.stack([c(state, data.actions) for c in self.target_critics]).amin(0)
        return th.stack([c.evaluate(data.state, data.obs) for c in self.target_critics]).amin(0)

    def _at_actions(self, target_q: th.Tensor, data: Transitions) -> th.Tensor:
        """Of the data's actions, `[M, n]`, or `[M]` if central."""
        return target_q if self.central else data.taken(target_q)

    @th.no_grad()
    def _targets(
        self,
        data: Transitions,
        log_pi: th.Tensor,
        target_q: th.Tensor,
        values: th.Tensor | None,
    ) -> th.Tensor:
        """y of every transition, `[M]`, or `[M, n]` if independent."""
        a, then = self.args, data.then
        if values is not None:
            following = values[then]
        elif self.central:
            drawn = draw(log_pi[then].exp())
            if a.target == "sarsa":
                drawn = th.where(data.goes_on.unsqueeze(-1), data.all_actions[then], drawn)
            state = data.state[then]
            following = th.stack([c(state, drawn) for c in self.target_critics]).amin(0)
        else:
            following = (log_pi[then].exp() * target_q[then]).sum(-1)
            if a.target == "sarsa":
                taken = gather_actions(target_q[then], data.all_actions[then])
                following = th.where(data.goes_on.unsqueeze(-1), taken, following)
        if not self.central:
            following = self.target_mixer(following, data.state[then])
        # Agents first: transitions are the last axis of what TD(lambda) reads.
        targets = data.td_lambda(following.movedim(0, -1), a.gamma, a.td_lambda).movedim(-1, 0)
        if a.cap_targets:
            returns = data.td_lambda(th.zeros_like(data.reward), a.gamma, 1.0)
            self.best["return"].clamp_(min=returns.max())
            targets = targets.clamp(max=self.best["return"])
        return targets

    def _critic_loss(self, totals: list[th.Tensor], targets: th.Tensor) -> th.Tensor:
        loss = th.stack([(total - targets).square().mean() for total in totals]).mean()
        return loss / spread(totals[0]).square() if self.args.value_normalisation else loss

    # The policy

    def _policy_loss(
        self,
        data: Transitions,
        log_pi: th.Tensor,
        q: th.Tensor | None,
        target_q: th.Tensor,
        values: th.Tensor | None,
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """L_pi and what is worth logging of it."""
        a, log_pi = self.args, log_pi[data.now]
        taken = gather_actions(log_pi, data.actions)
        if a.extraction == "bc":
            return -taken.mean(), {}
        if a.extraction == "brac":
            own = self._own([self.critics[0]], None if self.central else self.mixer, q, data)
            size = gather_actions(own, data.actions).abs().mean().clamp(min=SMALLEST_SCALE)
            expected = (log_pi.exp() * own).sum(-1).mean()
            return -taken.mean() - a.alpha / size * expected, {"value_size": size}
        advantage = self._advantage(data, log_pi.detach(), target_q, values)
        weight = regression_weights(advantage, a.inverse_temperature, a.largest_weight)
        stats = {
            "advantage_std": advantage.std(),
            "weight_mean": weight.mean(),
            "weight_clipped_share": (weight >= a.largest_weight).float().mean(),
        }
        return -(weight * taken).mean(), stats

    @th.no_grad()
    def _advantage(
        self,
        data: Transitions,
        log_pi: th.Tensor,
        target_q: th.Tensor,
        values: th.Tensor | None,
    ) -> th.Tensor:
        """A of the data's actions, `[M, n]`; `[M, 1]` where it is the same for all agents."""
        if values is None:
            mixer = None if self.central else self.target_mixer
            q = None if self.central else target_q[data.now]
            own = self._own(self.target_critics, mixer, q, data)
            return gather_actions(own, data.actions) - (log_pi.exp() * own).sum(-1)
        taken, values = self._at_actions(target_q, data), values[data.now]
        if self.central:
            return (taken - values).unsqueeze(-1)
        two = th.stack([taken, values], dim=-1)  # of two actions, of which the first was taken
        own = self._mixed(self.target_mixer, two, th.zeros_like(data.actions), data)
        return own[..., 0] - own[..., 1]

    @th.no_grad()
    def _own(self, critics: Any, mixer: Any, q: th.Tensor | None, data: Transitions) -> th.Tensor:
        """q_i(b) = Q(s, b, a_{-i}) of every agent and action, `[M, n, A]`."""
        if q is None:
            state = data.state[data.now]
            return th.stack([c.own_values(state, data.actions) for c in critics]).amin(0)
        return self._mixed(mixer, q, data.actions, data)

    def _mixed(self, mixer: Any, q: th.Tensor, actions: th.Tensor, data: Transitions) -> th.Tensor:
        """The agents' values q `[M, n, A]` beside the others' at their actions, mixed."""
        if self.args.decomposition == "independent":
            return q
        joints = counterfactual_values(q, actions).flatten(1, 2)
        mixed: th.Tensor = mixer.weights(data.state[data.now]).mix_many(joints)
        return mixed.view_as(q)
