"""Mixers by name: `REGISTRY[args.mixer](args)`."""

from modules.mixers.qmix import QMixer

REGISTRY = {"qmix": QMixer}
