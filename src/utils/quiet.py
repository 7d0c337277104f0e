"""Third parties say things that the user can do nothing about; here they are asked not to.

Call `silence_third_parties()` before importing sacred, jax, jaxmarl or gym.
"""

from __future__ import annotations

import logging
import os
import warnings

ENVIRONMENT = {
    # JAX only steps small simulators here: on the CPU, and the GPU's memory is left to torch.
    "JAX_PLATFORMS": "cpu",
    # Where the user lets JAX have the GPU: it takes what it needs, not most of it at once.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
}
MODULES = ("sacred", "pkg_resources", "jaxmarl", "gym", "gymnasium", "flax", "pygame", "jax")


def silence_third_parties() -> None:
    """Set the environment variables (those the user has set stay) and the warning filters."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    warnings.filterwarnings("ignore", message="Gym has been unmaintained")
    for module in MODULES:
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{module}(\.|$)")
    for name in ("jax", "absl", "git"):
        logging.getLogger(name).setLevel(logging.ERROR)
