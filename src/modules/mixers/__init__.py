"""Mixers by name: `REGISTRY[args.mixer](args)`."""

from inspo.modules.mixers.linear import LinearMixer
from inspo.modules.mixers.qmix import QMixer

REGISTRY = {"linear": LinearMixer, "qmix": QMixer}
