"""OMIGA: global value regularisation as local ones, by a linear mixer."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.learners.targets import TargetSchedule
from inspo.modules.mixers import REGISTRY as mixer_REGISTRY
from inspo.modules.mixers.linear import LinearMixer, LinearWeights
from inspo.modules.mlp import MLP
from inspo.utils.errors import named
from inspo.utils.rl_utils import gather_actions, masked_log_softmax, soft_update
from inspo.utils.settings import Settings


class Values(NamedTuple):
    """What the networks say of the transitions of a batch; `[M, n]` but for q_loss and stats.

    v has its graph, and q_loss, 0-d. q and w, the weights of the mixer, are without.
    """

    q_loss: th.Tensor
    v: th.Tensor
    q: th.Tensor
    w: th.Tensor
    target_q: th.Tensor
    target_w: th.Tensor
    stats: dict[str, th.Tensor]


class OMIGALearner(Learner):
    r"""OMIGA (Wang et al., NeurIPS 2023, arXiv 2307.11620), for discrete actions.

    Values :math:`Q_i(o_i, a_i)` and :math:`V_i(o_i)` are feed-forward, shared by the agents, and
    mixed by one network, :math:`Q_{tot} = \sum_i w_i(s) Q_i + b(s)` with :math:`w_i \ge 0`, and
    :math:`V_{tot}` by the same :math:`w, b`. With a bar for target networks (soft updates), and
    means over valid transitions (and agents):

    .. math::
        L_Q &= \operatorname{mean} (Q_{tot}(s, a) - y)^2, \quad
        y = r + \gamma (1 - d) \Big[\sum_i \bar w_i(s') \bar V_i(o'_i) + \bar b(s')\Big] \\
        z_i &= \bar w_i(s) (\bar Q_i(o_i, a_i) - V_i(o_i)) / \alpha \\
        L_V &= e^{-z_{max}} \operatorname{mean} [\exp z_i + \bar w_i(s) V_i(o_i) / \alpha] \\
        L_\pi &= -\operatorname{mean} \exp(\min(z_i, c)) \log \pi_i(a_i | \tau_i)

    :math:`L_V` is least at :math:`V_i = (\alpha / \bar w_i) \log E_\mu \exp(\bar w_i \bar Q_i /
    \alpha)`, and the policy that :math:`L_\pi` leads to is :math:`\mu_i \exp z_i`. The scale
    :math:`z_{max} = \max(\min(\max z, c), -1)`, without gradient, keeps :math:`L_V` in range. All
    three losses come from one pass; their parameters have nothing in common.

    Keys: `alpha` is the temperature (large: behaviour cloning), `weight_clip` is c, `target_tau`
    the soft step. The batch carries EPyMARL's keys and nothing more.

    Deviations from the authors' code, branch SMAC:

    - There z itself is clipped to [-c, c]. Where z > c that leaves L_V the term w V / alpha alone,
      which moves V down, away from Q. Here exp z goes on as its tangent beyond c
      (`tangent_exp`), so V comes back at a bounded pace; below, exp z needs no bound.
    - The policy's log-probabilities are over available actions; there over all.
    - d is the data's `terminated`; there it was concluded from s = s'.
    - Agents are the harness's (recurrent on SMAX); there feed-forward. The mixer reads the
      environment's state; there the states of all agents side by side.
    - A batch is of whole episodes; there of 128 single transitions.
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        inputs = args.obs_shape + args.n_agents
        self.q = MLP(inputs, args.critic_hidden_dim, args.n_actions)
        self.v = MLP(inputs, args.critic_hidden_dim, 1)
        self.mixer: LinearMixer = named(mixer_REGISTRY, args.mixer, "mixer")(args)
        self.target_q, self.target_v = copy.deepcopy(self.q), copy.deepcopy(self.v)
        self.target_mixer = copy.deepcopy(self.mixer)
        self.networks |= {
            "q": self.q,
            "v": self.v,
            "mixer": self.mixer,
            "target_q": self.target_q,
            "target_v": self.target_v,
            "target_mixer": self.target_mixer,
        }
        groups = {
            "policy": mac.parameters(),
            "q": [*self.q.parameters(), *self.mixer.parameters()],
            "v": self.v.parameters(),
        }
        self.optimisers |= {name: adam(p, args.lr) for name, p in groups.items()}

    def target_schedule(self, updates: int, transitions: float) -> TargetSchedule:
        return TargetSchedule(updates, self.args.target_tau, 0.0)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        a = self.args
        losses, stats = self.losses(Transitions(batch, self.mac))
        every = th.stack([*losses.values()])
        norms = dict(zip(losses, self.descend_each([*losses], every, a.grad_norm_clip)))
        slow = self.target_q, self.target_v, self.target_mixer
        soft_update(slow, (self.q, self.v, self.mixer), a.target_tau)
        self.updates += 1

        if self.log_due(t_env):
            stats |= {f"{name}_loss": loss.detach() for name, loss in losses.items()}
            stats |= {f"{name}_grad_norm": norm for name, norm in norms.items()}
            self.logger.log_stats(stats, t_env)

    def losses(self, data: Transitions) -> tuple[dict[str, th.Tensor], dict[str, th.Tensor]]:
        """One loss for each optimiser, and what is logged beside them."""
        a = self.args
        values = self.evaluate(data, data.reward)
        w = values.target_w / a.alpha
        z = w * (values.target_q - values.v)
        log_pi = masked_log_softmax(self.mac.agent.unroll(data.inputs, data.packed), data.avail)
        weight = z.detach().clamp(max=a.weight_clip).exp()
        losses = {
            "policy": -(weight * data.taken(log_pi)).mean(),
            "q": values.q_loss,
            "v": value_loss(z, w * values.v, a.weight_clip),
        }
        stats = values.stats | {
            "weight_mean": weight.mean(),
            "weight_clipped_share": (z.detach() > a.weight_clip).float().mean(),
        }
        return losses, stats

    def evaluate(self, data: Transitions, reward: th.Tensor) -> Values:
        """reward `[M]`: what Q is of."""
        a, now, then = self.args, data.now, data.then
        seen = with_identity(data.obs)  # [R, n, O + n]
        seen_now = seen[now]
        q = gather_actions(self.q(seen_now), data.actions)  # [M, n]
        mixing = self.mixer.weights(data.state[now])
        v = self.v(seen_now).squeeze(-1)
        with th.no_grad():
            target_mixing = self.target_mixer.weights(data.state)
            next_v = self.target_v(seen[then]).squeeze(-1)
            next_v_tot = LinearWeights(target_mixing.w[then], target_mixing.b[then]).mix(next_v)
            targets = reward + a.gamma * (1 - data.terminated) * next_v_tot
            target_q = gather_actions(self.target_q(seen_now), data.actions)
        stats = {
            "target_mean": targets.mean(),
            "v_mean": v.detach().mean(),
            "mixing_weight_mean": target_mixing.w.mean(),
        }
        q_loss = (mixing.mix(q) - targets).square().mean()
        w, target_w = mixing.w.detach(), target_mixing.w[now]
        return Values(q_loss, v, q.detach(), w, target_q, target_w, stats)


def with_identity(obs: th.Tensor) -> th.Tensor:
    """obs `[R, n, O]` -> `[R, n, O + n]`, who each agent is behind what it sees."""
    identity = th.eye(obs.shape[1], dtype=obs.dtype, device=obs.device)
    return th.cat([obs, identity.expand(len(obs), -1, -1)], dim=-1)


def tangent_exp(z: th.Tensor, bound: float, shift: th.Tensor) -> th.Tensor:
    """exp(z - shift), continued beyond `bound` by its tangent there: convex, of bounded slope."""
    below = z.clamp(max=bound)
    return (below - shift).exp() * (1 + z - below)


def value_loss(z: th.Tensor, wv: th.Tensor, bound: float) -> th.Tensor:
    """L_V of z and w V / alpha, both of any shape; z beyond `bound` counts by the tangent."""
    shift = z.detach().clamp(max=bound).max().clamp(min=-1.0)
    return (tangent_exp(z, bound, shift) + (-shift).exp() * wv).mean()
