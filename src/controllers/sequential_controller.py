"""InSPO's controller: one policy per agent, and the order in which they are improved."""

from __future__ import annotations

import torch as th

from inspo.components.episode_batch import Scheme
from inspo.components.packed import PackedEpisodes
from inspo.controllers.basic_controller import BasicMAC
from inspo.modules.agents.non_shared import NonSharedAgents
from inspo.utils.errors import ConfigError
from inspo.utils.rl_utils import masked_log_softmax
from inspo.utils.settings import Settings


class SequentialMAC(BasicMAC):
    """Per-agent policies, updated one after the other (InSPO, Algorithm 1, lines 4 to 7).

    The agent must be a non-shared one (`rnn_ns`, `mlp_ns`): with shared weights an update of one
    agent would move the others too, and the sequential argument (Prop. 4) would not hold.
    """

    agent: NonSharedAgents

    def __init__(self, scheme: Scheme, groups: dict[str, int], args: Settings):
        super().__init__(scheme, groups, args)
        if not isinstance(self.agent, NonSharedAgents):
            raise ConfigError(
                f"agent: expected a network for each agent (rnn_ns, mlp_ns), found '{args.agent}'"
            )
        blocks = getattr(args, "blocks", 0)  # AlberDICE has no such key
        if blocks > self.n_agents:
            raise ConfigError(
                f"blocks: expected at most {self.n_agents}, as many as there are agents; found "
                f"{blocks}. 0 is a block an agent."
            )

    def log_policy(
        self, i: int, inputs: th.Tensor, avail: th.Tensor, packed: PackedEpisodes
    ) -> th.Tensor:
        """log pi_i over all its actions in every filled step.

        inputs `[R, n, I]`, avail `[R, n, A]` -> `[R, A]`, about -1e10 where unavailable.
        """
        logits = self.agent.unroll_agent(i, inputs[:, i], packed)
        return masked_log_softmax(logits, avail[:, i])

    def agent_parameters(self, i: int) -> list[th.nn.Parameter]:
        return list(self.agent.agent(i).parameters())

    def draw_order(self, expected_advantage: th.Tensor | None = None) -> list[list[int]]:
        """The order of this sweep (`args.agent_order`; the three of the paper's Table 6), in
        `args.blocks` blocks as equal as can be (0: a block an agent).

        random: a uniform permutation (Algorithm 1, line 4). fixed: 0, 1, ..., n - 1.
        semi_greedy: every second place goes to the agent of largest expected advantage among those
        left, the others are drawn at random (Wang et al. 2023, "Order Matters").

        Args:
            expected_advantage: `[n]`, E|A_i| on the batch; only semi_greedy reads it.
        """
        n, blocks = self.n_agents, self.args.blocks or self.n_agents
        order = self._order(expected_advantage)
        return [order[k * n // blocks : (k + 1) * n // blocks] for k in range(blocks)]

    def _order(self, expected_advantage: th.Tensor | None) -> list[int]:
        order: list[int] = th.randperm(self.n_agents).tolist()
        if self.args.agent_order == "fixed":
            return sorted(order)
        if self.args.agent_order == "semi_greedy":
            assert expected_advantage is not None
            score = expected_advantage.tolist()
            for place in range(1, self.n_agents, 2):
                best = max(order[place:], key=lambda agent: score[agent])
                order.remove(best)
                order.insert(place, best)
        return order
