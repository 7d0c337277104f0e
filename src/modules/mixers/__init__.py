"""Mixers by name: `REGISTRY[args.mixer](args)`."""

from typing import Any

from inspo.modules.mixers.linear import LinearMixer
from inspo.modules.mixers.qmix import QMixer

REGISTRY: dict[str, Any] = {"linear": LinearMixer, "qmix": QMixer}
