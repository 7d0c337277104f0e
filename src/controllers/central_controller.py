"""The controller of agents that act one after the other, on what all of them see and do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from inspo.components.episode_batch import EpisodeBatch, Scheme
from inspo.controllers.basic_controller import BasicMAC, require_finite
from inspo.modules.agents.oryx_agent import OryxAgent
from inspo.utils.errors import named
from inspo.utils.rl_utils import masked_log_softmax
from inspo.utils.settings import Settings

Choose = Callable[[int, th.Tensor, th.Tensor], th.Tensor]


class CentralMAC(BasicMAC):
    """Each agent draws its action knowing those of the agents before it, 0, 1, ..., n - 1.

    So acting takes every agent's observation and n passes in turn (Oryx). With `decentralised`,
    each acts on what it has seen itself, and the order is of no account.
    """

    sequence: OryxAgent

    def __init__(self, scheme: Scheme, groups: dict[str, int], args: Settings):
        super().__init__(scheme, groups, args)
        self.acts_alone = args.decentralised

    def _make_agent(self) -> Any:
        named({"oryx": OryxAgent}, self.args.agent, "agent")
        self.sequence = OryxAgent(self.input_shape, self.args)
        return self.sequence

    def select_actions(
        self,
        ep_batch: EpisodeBatch,
        t_ep: int,
        t_env: int,
        bs: Any = slice(None),
        test_mode: bool = False,
    ) -> th.Tensor:
        """Actions of step t_ep for the episodes `bs`, drawn by one agent after the other, long
        `[len(bs), n_agents]`. TrainingFailure if an agent's probabilities are not finite."""
        chosen: list[th.Tensor] = []

        def choose(i: int, probabilities: th.Tensor, avail: th.Tensor) -> th.Tensor:
            require_finite(probabilities)
            one = probabilities.unsqueeze(1), avail.unsqueeze(1)
            chosen.append(self.action_selector.select(*one, t_env, test_mode).squeeze(1))
            return chosen[-1]

        self._play(ep_batch, t_ep, bs, choose)
        return th.stack(chosen, dim=1)

    def forward(self, ep_batch: EpisodeBatch, t: int, test_mode: bool = False) -> th.Tensor:
        """One step of all episodes, in turn from t = 0: the probabilities of each agent's actions,
        given those of the agents before it in `ep_batch`, `[B, n, A]`."""
        actions = ep_batch["actions"][:, t].squeeze(-1).to(self.device)
        return self._play(ep_batch, t, slice(None), lambda i, *_: actions[:, i])

    @th.no_grad()
    def _play(self, ep_batch: EpisodeBatch, t: int, bs: Any, choose: Choose) -> th.Tensor:
        """Step t of the episodes `bs`; choose(i, probabilities, avail) gives agent i's actions."""
        device = self.device
        obs, avail = (ep_batch[key][bs, t].to(device) for key in ("obs", "avail_actions"))
        last = ep_batch["actions"][bs, t - 1].to(device) if t > 0 else None
        inputs = self._assemble(self.observed(obs), last)
        features, hidden = self.sequence.encode(inputs, self.hidden_states[bs])
        token, found = th.zeros(len(obs), dtype=th.long, device=device), []
        for i in range(self.n_agents):
            logits, hidden = self.sequence.decode(i, features, token, hidden)
            probabilities = masked_log_softmax(logits, avail[:, i]).exp() * (avail[:, i] > 0)
            found.append(probabilities)
            token = choose(i, probabilities, avail[:, i]) + 1
        self.hidden_states[bs] = hidden
        return th.stack(found, dim=1)

    def init_hidden(self, batch_size: int) -> None:
        hidden = self.sequence.init_hidden()
        self.hidden_states = hidden.expand(batch_size, *hidden.shape[1:]).contiguous()

    def unroll(self, batch: EpisodeBatch) -> th.Tensor:
        """Logits given the actions in the data of the agents before, `[R, n, A]`."""
        actions = batch.rows("actions").squeeze(-1)
        order = th.arange(self.n_agents, device=actions.device)
        return self.sequence.unroll(self.inputs(batch), actions, batch.packed, order)[0]

    def joint_policy(self, batch: EpisodeBatch) -> np.ndarray:
        widths = [th.arange(self.args.n_actions)] * self.n_agents
        joint = th.cartesian_prod(*widths).view(-1, self.n_agents)  # [A^n, n]
        rows = {
            key: x[:1, :1].repeat(len(joint), *[1] * (x.ndim - 1)) for key, x in batch.data.items()
        }
        rows["actions"] = joint[:, None, :, None]
        self.init_hidden(len(joint))
        outputs = self.forward(EpisodeBatch(rows), t=0, test_mode=True)
        avail = rows["avail_actions"][:, 0].to(outputs.device)
        told = self.action_selector.probabilities(outputs, avail)
        shares = told.gather(-1, joint.unsqueeze(-1).to(told.device)).double().prod(1)
        return shares.view([len(width) for width in widths]).cpu().numpy()
