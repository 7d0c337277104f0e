"""Mixers by name: `REGISTRY[args.mixer](args)`."""

from modules.mixers.linear import LinearMixer
from modules.mixers.qmix import QMixer

REGISTRY = {"linear": LinearMixer, "qmix": QMixer}
