"""The multi-layer perceptron that critics and feed-forward agents are made of."""

from torch import nn


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers, two of them hidden, with ReLU ("3-layer MLP", InSPO Appendix C.4)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
