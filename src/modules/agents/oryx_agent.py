"""Oryx's network: a retentive encoder of observations, a decoder of the agents' actions in turn."""

from __future__ import annotations

import torch as th
from torch import nn

from inspo.components.packed import PackedEpisodes
from inspo.modules.retention import Retention
from inspo.utils.errors import ConfigError
from inspo.utils.settings import Settings


class GatedUnit(nn.Module):
    """SwiGLU: (swish(x W) * x V) U, all `[W, W]`."""

    def __init__(self, width: int):
        super().__init__()
        self.gate, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: th.Tensor) -> th.Tensor:
        mapped: th.Tensor = self.out(nn.functional.silu(self.gate(x)) * self.value(x))
        return mapped


def head(width: int, outputs: int) -> nn.Sequential:
    """Two layers, of which the last begins near 0."""
    last = nn.Linear(width, outputs)
    nn.init.orthogonal_(last.weight, 0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.RMSNorm(width), last)


class OryxAgent(nn.Module):
    """All agents' logits and values, one agent after the other in every step.

    The encoder mixes what all agents see, within a step and over the steps before. The decoder
    reads it beside the actions of the agents before each one, in this step and in those before.
    If `decentralised`, the encoder keeps every agent's history apart and the logits are its alone;
    the values still see the predecessors' actions, which only training has.
    """

    def __init__(self, input_shape: int, args: Settings):
        super().__init__()
        width, a = args.hidden_dim, args.retention
        if width % a.heads:
            raise ConfigError(
                f"hidden_dim: expected a multiple of retention.heads={a.heads}, found {width}"
            )
        self.alone: bool = args.decentralised
        self.n_agents = args.n_agents

        def retention(causal: bool, apart: bool = False) -> Retention:
            return Retention(width, a.heads, a.decay_scale, causal, apart)

        def feed_forward() -> nn.Module | None:
            return GatedUnit(width) if a.feed_forward else None

        embed = nn.Linear(input_shape, width, bias=False)
        self.embed = nn.Sequential(
            nn.RMSNorm(input_shape), embed, nn.GELU(), nn.RMSNorm(width)
        )  # fmt: skip
        self.over_observations = retention(causal=False, apart=self.alone)
        self.encoder_norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.encoder_unit = feed_forward()

        start_and_actions = nn.Embedding(args.n_actions + 1, width)
        nn.init.orthogonal_(start_and_actions.weight, 2**0.5)
        self.embed_action = nn.Sequential(start_and_actions, nn.GELU(), nn.RMSNorm(width))
        self.over_actions = retention(causal=True)
        self.across = retention(causal=True)
        self.decoder_norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.decoder_unit = feed_forward()
        self.policy, self.value = head(width, args.n_actions), head(width, args.n_actions)

    # What follows a retention, in both forms

    def _encoded(self, x: th.Tensor, read: th.Tensor) -> th.Tensor:
        x = self.encoder_norms[0](x + read)
        encoded: th.Tensor = self.encoder_norms[1](
            x + self.encoder_unit(x) if self.encoder_unit else x
        )
        return encoded

    def _decoded(self, features: th.Tensor, read: th.Tensor) -> th.Tensor:
        y = self.decoder_norms[1](features + read)
        decoded: th.Tensor = self.decoder_norms[2](
            y + self.decoder_unit(y) if self.decoder_unit else y
        )
        return decoded

    # Learning: whole episodes

    def unroll(
        self, inputs: th.Tensor, actions: th.Tensor, packed: PackedEpisodes, order: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """(logits, values) of all agents' actions in every filled step, `[R, n, A]` each.

        inputs `[R, n, I]`, actions in the data `[R, n]`, order: a permutation of the agents `[n]`,
        in which each sees what those before it did.
        """
        features, decoded = self._sequence(inputs, actions, packed, order)
        logits = self.policy(features if self.alone else decoded)
        back = order.argsort()
        return logits[:, back], self.value(decoded)[:, back]

    def values(
        self, inputs: th.Tensor, actions: th.Tensor, packed: PackedEpisodes, order: th.Tensor
    ) -> th.Tensor:
        """The second of what `unroll` returns."""
        _, decoded = self._sequence(inputs, actions, packed, order)
        values: th.Tensor = self.value(decoded)
        return values[:, order.argsort()]

    def _sequence(
        self, inputs: th.Tensor, actions: th.Tensor, packed: PackedEpisodes, order: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """What encoder and decoder make of it, `[R, n, W]` each, the agents in that order."""
        x = self.embed(inputs[:, order])
        features = self._encoded(x, self.over_observations(x, x, packed))
        token = actions[:, order] + 1
        token = th.cat(
            [th.zeros_like(token[:, :1]), token[:, :-1]], dim=1
        )  # 0: the first of a step
        x = self.embed_action(token)
        key = self.decoder_norms[0](x + self.over_actions(x, x, packed))
        return features, self._decoded(features, self.across(features, key, packed))

    # Acting: one step, one agent after the other

    def init_hidden(self) -> th.Tensor:
        """What is kept before an episode's first step, `[1, K, H, D, D]`: of the encoder (of each
        agent's, if decentralised), then of the decoder's two retentions."""
        heads, width = self.across.n_heads, self.across.norm.num_channels
        shape = (self.n_agents if self.alone else 1) + 2, heads, width // heads, width // heads
        return self.across.norm.weight.new_zeros(1, *shape)

    def encode(self, inputs: th.Tensor, hidden: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """A step of all agents: inputs `[B, n, I]`, hidden `[B, K, H, D, D]` -> features
        `[B, n, W]`, hidden."""
        x = self.embed(inputs)
        if self.alone:
            read, kept = self.over_observations.step(x, x, hidden[:, :-2])
        else:
            read, kept = self.over_observations.step(x, x, hidden[:, 0])
            kept = kept.unsqueeze(1)
        return self._encoded(x, read), th.cat([kept, hidden[:, -2:]], dim=1)

    def decode(
        self, i: int, features: th.Tensor, token: th.Tensor, hidden: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """Agent i's logits `[B, A]`, and what is kept then. token `[B]`: the action of the agent
        before it plus 1, or 0 for the first."""
        own = features[:, i : i + 1]
        if self.alone:
            return self.policy(own).squeeze(1), hidden
        x = self.embed_action(token.unsqueeze(1))
        read, first = self.over_actions.step(x, x, hidden[:, -2], decays=i == 0)
        key = self.decoder_norms[0](x + read)
        read, second = self.across.step(own, key, hidden[:, -1], decays=i == 0)
        logits = self.policy(self._decoded(own, read)).squeeze(1)
        return logits, th.cat([hidden[:, :-2], th.stack([first, second], dim=1)], dim=1)
