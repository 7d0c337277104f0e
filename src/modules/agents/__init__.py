"""Agents by name: `REGISTRY[args.agent](input_shape, args)`. `_ns`: one network per agent."""

from inspo.modules.agents.agent import Agent
from inspo.modules.agents.mlp_agent import MLPAgent, MLPNSAgent
from inspo.modules.agents.rnn_agent import RNNAgent, RNNNSAgent

REGISTRY: dict[str, type[Agent]] = {
    "rnn": RNNAgent,
    "rnn_ns": RNNNSAgent,
    "mlp": MLPAgent,
    "mlp_ns": MLPNSAgent,
}
