"""Mixers by name: `REGISTRY[args.mixer](args)`."""

from typing import Any

from inspo.modules.mixers.convex import ConvexMixer
from inspo.modules.mixers.linear import LinearMixer
from inspo.modules.mixers.plain import SeparateMixer, SumMixer
from inspo.modules.mixers.qmix import QMixer

REGISTRY: dict[str, Any] = {
    "convex": ConvexMixer,
    "independent": SeparateMixer,
    "linear": LinearMixer,
    "qmix": QMixer,
    "vdn": SumMixer,
}
