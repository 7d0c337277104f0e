"""The plugin for EPyMARL: what a line in each of a checkout's registries takes from this package.

`learner`, `mac` and `runner` are all "offline" there; which of our classes these stand for, the key
`algorithm` says. Nothing more is imported before one of them is built: a run of the checkout's own
algorithms neither waits for ours nor fails by them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def _late(name: str) -> Callable[..., Any]:
    """A function of `offline.py`, which is imported when it is called."""
    return lambda *args, **kwargs: getattr(import_module(f"{__name__}.offline"), name)(
        *args, **kwargs
    )


LEARNERS = {"offline": _late("make_learner")}
CONTROLLERS = {"offline": _late("make_controller")}
RUNNERS = {"offline": _late("OfflineRunner")}
