"""MAPPO, the learner that collects the expert data."""

from __future__ import annotations

from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.modules.mlp import MLP
from inspo.utils.rl_utils import cosine_rate, entropy, gather_actions, masked_log_softmax
from inspo.utils.settings import Settings


class ValueNorm(nn.Module):
    """Running mean and deviation of the value targets, so that the critic's outputs are near 1."""

    mean: th.Tensor
    square: th.Tensor
    weight: th.Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        for name in ("mean", "square", "weight"):
            self.register_buffer(name, th.zeros(()))

    @th.no_grad()
    def update(self, x: th.Tensor) -> None:
        self.mean.lerp_(x.mean(), 1 - self.decay)
        self.square.lerp_(x.square().mean(), 1 - self.decay)
        self.weight.lerp_(th.ones_like(self.weight), 1 - self.decay)

    def _moments(self) -> tuple[th.Tensor, th.Tensor]:
        weight = self.weight.clamp(min=1e-5)
        mean = self.mean / weight
        return mean, (self.square / weight - mean**2).clamp(min=1e-2).sqrt()

    def normalise(self, x: th.Tensor) -> th.Tensor:
        mean, std = self._moments()
        return (x - mean) / std

    def denormalise(self, x: th.Tensor) -> th.Tensor:
        mean, std = self._moments()
        return x * std + mean


class MAPPOLearner(Learner):
    r"""MAPPO (Yu et al. 2022): PPO with shared actors and a critic of the global state.

    .. math::
        L_\pi = -\operatorname{mean} \min(\rho A, \operatorname{clip}(\rho, 1 \pm \epsilon) A)
                - c_H \operatorname{mean} H(\pi), \qquad
        L_V = \operatorname{mean} \operatorname{huber}(V(s) - \hat G^\lambda)

    with :math:`\rho = \pi(a|\tau) / \pi_{old}(a|\tau)` per agent, GAE advantages normalised over
    the batch, value targets normalised by their running moments. Agents without a choice (the dead)
    take no part in the actor's mean. `epochs` steps on each on-policy batch; the learning rates
    fall on a cosine over the run if `lr_decay` is cosine. For the first `critic_warmup` of the run
    the critic alone is trained: policies that another run has trained would be spoilt by the
    advantages of a critic that knows nothing.
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.critic = MLP(scheme["state"]["vshape"], args.critic_hidden_dim, 1)
        self.value_norm = ValueNorm()
        self.networks |= {"critic": self.critic, "value_norm": self.value_norm}
        self.optimisers["actor"] = adam(mac.parameters(), args.lr)
        self.optimisers["critic"] = adam(self.critic.parameters(), args.critic_lr)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        a = self.args
        data = Transitions(batch, self.mac)
        now, state, avail = data.now, data.state, data.avail[data.now]
        choosing = (avail.sum(-1) > 1).float()  # [M, n]
        n_choosing = choosing.sum().clamp(min=1)

        with th.no_grad():
            values = self.value_norm.denormalise(self.critic(state).squeeze(-1))
            targets = data.td_lambda(values[data.then], a.gamma, a.gae_lambda)
            advantage = targets - values[now]
            std = advantage.std(correction=min(1, len(advantage) - 1))  # one has no deviation
            advantage = (advantage - advantage.mean()) / std.clamp(min=1e-6)
            self.value_norm.update(targets)
            targets = self.value_norm.normalise(targets)
        if a.lr_decay == "cosine":
            cosine_rate(self.optimisers["actor"], a.lr, t_env / a.t_max)
            cosine_rate(self.optimisers["critic"], a.critic_lr, t_env / a.t_max)
        warming_up = t_env < a.critic_warmup * a.t_max
        old_log_pi = None
        for _ in range(a.epochs):
            logits = self.mac.agent.unroll(data.inputs, data.packed)[now]
            log_policy = masked_log_softmax(logits, avail)
            log_pi = gather_actions(log_policy, data.actions)
            if old_log_pi is None:
                old_log_pi = log_pi.detach()  # the networks that acted are those of the first epoch
            ratio = (log_pi - old_log_pi).exp()
            clipped = ratio.clamp(1 - a.eps_clip, 1 + a.eps_clip)
            gain = th.min(ratio * advantage[:, None], clipped * advantage[:, None])
            policy_entropy = (entropy(log_policy) * choosing).sum() / n_choosing
            actor_loss = -(gain * choosing).sum() / n_choosing - a.entropy_coef * policy_entropy
            if not warming_up:
                actor_norm = self.descend("actor", actor_loss, a.grad_norm_clip)
            critic_loss = F.huber_loss(self.critic(state[now]).squeeze(-1), targets)
            critic_norm = self.descend("critic", critic_loss, a.grad_norm_clip)
        self.updates += 1

        if self.log_due(t_env):
            far = ((ratio - 1).abs() > a.eps_clip).float()
            self.logger.log_stats(
                {
                    "actor_loss": actor_loss.detach(),
                    "critic_loss": critic_loss.detach(),
                    "critic_grad_norm": critic_norm,
                    "entropy": policy_entropy.detach(),
                    "clipped_share": (far * choosing).sum().detach() / n_choosing,
                }
                | ({} if warming_up else {"actor_grad_norm": actor_norm}),
                t_env,
            )
