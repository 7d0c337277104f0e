"""Offline multi-agent reinforcement learning by in-sample sequential policy optimisation."""

__version__ = "0.1.0"
