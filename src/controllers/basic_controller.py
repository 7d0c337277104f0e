"""The multi-agent controller: observations in, actions out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from inspo.components.action_selectors import REGISTRY as action_REGISTRY
from inspo.components.episode_batch import EpisodeBatch, Scheme
from inspo.modules.agents import REGISTRY as agent_REGISTRY
from inspo.modules.agents.agent import Agent
from inspo.utils.errors import TrainingFailure, named
from inspo.utils.rl_utils import masked_log_softmax, one_hot
from inspo.utils.settings import Settings


class BasicMAC:
    """Agents that act on their own observations, and optionally last action and identity.

    Which networks they have, shared or one each, is the agent's matter (`args.agent`).

    Attributes: acts_alone, whether each agent's policy depends on its own history alone.
    """

    acts_alone: bool = True

    def __init__(self, scheme: Scheme, groups: dict[str, int], args: Settings):
        self.args = args
        self.n_agents = args.n_agents
        last = args.n_actions if args.obs_last_action else 0
        identity = args.n_agents if args.obs_agent_id else 0
        self.input_shape: int = scheme["obs"]["vshape"] + last + identity
        self.agent: Agent = self._make_agent()
        if args.standardise:
            for name, value in (("obs_mean", 0.0), ("obs_std", 1.0)):
                self.agent.register_buffer(name, th.full((scheme["obs"]["vshape"],), value))
        self.action_selector = named(action_REGISTRY, args.action_selector, "action_selector")(args)
        self.hidden_states = th.empty(0)  # see init_hidden

    def _make_agent(self) -> Agent:
        make = named(agent_REGISTRY, self.args.agent, "agent")
        return make(self.input_shape, self.args)

    # Acting

    def select_actions(
        self,
        ep_batch: EpisodeBatch,
        t_ep: int,
        t_env: int,
        bs: Any = slice(None),
        test_mode: bool = False,
    ) -> th.Tensor:
        """Actions of step t_ep for the episodes `bs`, long `[len(bs), n_agents]`.

        TrainingFailure if the agents' outputs are not finite.
        """
        outputs = self.forward(ep_batch, t_ep, test_mode)[bs]
        require_finite(outputs)
        avail = ep_batch["avail_actions"][bs, t_ep].to(outputs.device)
        return self.action_selector.select(outputs, avail, t_env, test_mode)

    @th.no_grad()
    def forward(self, ep_batch: EpisodeBatch, t: int, test_mode: bool = False) -> th.Tensor:
        """One step of all episodes, in turn from t = 0: `[B, n, A]`.

        Probabilities (zero where unavailable) if `agent_output_type` is pi_logits, else Q-values.
        """
        device = self.device
        actions = ep_batch["actions"][:, t - 1] if t > 0 else None
        obs = self.observed(ep_batch["obs"][:, t].to(device))
        inputs = self._assemble(obs, None if actions is None else actions.to(device))
        outputs, self.hidden_states = self.agent(inputs.flatten(0, 1), self.hidden_states)
        outputs = th.unflatten(outputs, 0, (-1, self.n_agents))
        if self.args.agent_output_type == "pi_logits":
            avail = ep_batch["avail_actions"][:, t].to(device)
            return masked_log_softmax(outputs, avail).exp() * (avail > 0)
        return outputs

    def init_hidden(self, batch_size: int) -> None:
        """Forget; `batch_size` episodes begin."""
        hidden = self.agent.init_hidden()
        self.hidden_states = hidden.expand(batch_size * self.n_agents, -1).contiguous()

    def joint_policy(self, batch: EpisodeBatch) -> np.ndarray:
        """What tests draw the first joint action of episode 0 of `batch` from, `[A, ..., A]`."""
        self.init_hidden(batch.batch_size)
        outputs = self.forward(batch, t=0, test_mode=True)[:1]
        avail = batch["avail_actions"][:1, 0].to(outputs.device)
        policies = self.action_selector.probabilities(outputs, avail)[0].double().cpu().numpy()
        joint = np.ones(())
        for policy in policies:
            joint = np.multiply.outer(joint, policy)
        return joint

    # Learning

    def unroll(self, batch: EpisodeBatch) -> th.Tensor:
        """Raw outputs of the agents over whole episodes, `[R, n, A]`."""
        return self.agent.unroll(self.inputs(batch), batch.packed)

    def inputs(self, batch: EpisodeBatch) -> th.Tensor:
        """What the agents see in every filled step, `[R, n, I]`."""
        actions, packed = batch.rows("actions"), batch.packed
        last = None
        if self.args.obs_last_action:
            last = actions.new_full(actions.shape, -1)  # -1: no action before the first step
            last[packed.successors] = actions[packed.transitions]
        return self._assemble(self.observed(batch.rows("obs")), last)

    def observed(self, obs: th.Tensor) -> th.Tensor:
        """Observations `[..., O]` as the networks take them: standardised, if the key says so."""
        if not self.args.standardise:
            return obs
        mean, std = self.agent.get_buffer("obs_mean"), self.agent.get_buffer("obs_std")
        return (obs - mean) / std

    def set_moments(self, mean: th.Tensor, std: th.Tensor) -> None:
        """What observations are standardised by, `[O]` each."""
        self.agent.get_buffer("obs_mean").copy_(mean)
        self.agent.get_buffer("obs_std").copy_(std)

    def _assemble(self, obs: th.Tensor, last_actions: th.Tensor | None) -> th.Tensor:
        """obs `[N, n, O]`, last actions `[N, n, 1]` (-1 or None: none yet) -> `[N, n, I]`."""
        parts = [obs]
        if self.args.obs_last_action:
            if last_actions is None:
                parts.append(obs.new_zeros(*obs.shape[:-1], self.args.n_actions))
            else:
                parts.append(one_hot(last_actions.squeeze(-1), self.args.n_actions).to(obs.dtype))
        if self.args.obs_agent_id:
            identity = th.eye(self.n_agents, device=obs.device, dtype=obs.dtype)
            parts.append(identity.expand(len(obs), -1, -1))
        return th.cat(parts, dim=-1)

    # Networks

    @property
    def device(self) -> th.device:
        return next(self.agent.parameters()).device

    def parameters(self) -> Iterator[th.nn.Parameter]:
        return self.agent.parameters()

    def load_state(self, other: BasicMAC) -> None:
        self.agent.load_state_dict(other.agent.state_dict())

    def cuda(self) -> None:
        self.agent.cuda()

    def save_models(self, path: str | Path) -> None:
        th.save(self.agent.state_dict(), Path(path) / "agent.th")

    def load_models(self, path: str | Path) -> None:
        state = th.load(Path(path) / "agent.th", map_location=self.device, weights_only=True)
        self.agent.load_state_dict(state)


def require_finite(outputs: th.Tensor) -> None:
    """TrainingFailure if the agents' outputs are not finite."""
    if not outputs.isfinite().all():
        raise TrainingFailure(
            "the outputs of the agents' networks are not finite, so that there is nothing to "
            "act by: their weights are too large, most likely by a learning rate that is"
        )
