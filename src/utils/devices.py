"""The device that a run is on."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from inspo.utils.errors import ConfigError, reason_of

DRIVER = Path("/proc/driver/nvidia/version")


def choose_device(use_cuda: bool) -> tuple[str, str]:
    """`cuda` if it is wanted and there is one, else `cpu`; and what the user should know of that.

    ConfigError for a GPU that cannot be used: it is full, or too old or too new for this torch.
    """
    if not use_cuda:
        return "cpu", ""
    with warnings.catch_warnings(record=True) as said:  # of a driver that does not fit
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    if found:
        try:
            torch.zeros(1, device="cuda").add_(1).tolist()
        except RuntimeError as error:
            raise ConfigError(
                f"the GPU cannot be used: {reason_of(error)}. Free it, choose another one with "
                "CUDA_VISIBLE_DEVICES, or stay on the CPU with use_cuda=False"
            ) from error
        return "cuda", ""
    reasons = [str(warning.message).splitlines()[0] for warning in said]
    if torch.version.cuda is None and DRIVER.exists():
        reasons = [f"torch {torch.__version__} is built without CUDA"]
    if not reasons:
        return "cpu", ""
    return "cpu", f"the GPU is not used: {reasons[0]}. use_cuda=False says that this is meant"
