"""How much memory is free, so that what cannot fit is refused before it is asked for."""

from __future__ import annotations

from pathlib import Path

import torch as th

from inspo.utils.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup")
SMALL = 1 << 28  # bytes that are never looked at


def free_memory() -> int | None:
    """Bytes that can be had without pushing anything out; None where the system does not say."""
    known = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known += [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")]
    except OSError:
        pass
    try:  # what the limit of this control group (version 2) leaves; its file cache can be given up
        limit = int((CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((CGROUP / "memory.current").read_text())
        fields = dict(x.split() for x in (CGROUP / "memory.stat").read_text().splitlines())
        known.append(max(limit - used + int(fields["inactive_file"]), 0))
    except (OSError, ValueError, KeyError):
        pass
    return min(known, default=None)


def free_on(device: str | th.device) -> int | None:
    """Bytes that are free on a GPU; None for the CPU."""
    if th.device(device).type != "cuda":
        return None
    return int(th.cuda.mem_get_info(device)[0])


def check_memory(n_bytes: int, device: str | th.device, what: str, advice: str) -> None:
    """ConfigError if `n_bytes` are more than `device` has free. what, advice: for the message."""
    if n_bytes <= SMALL:
        return
    free = free_memory() if th.device(device).type == "cpu" else free_on(device)
    if free is not None and n_bytes > free:
        raise ConfigError(
            f"{what} need {n_bytes / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are "
            f"free on {device}. {advice}"
        )
