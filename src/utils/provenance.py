"""Where a result comes from: the command line, the commit, the versions of the packages."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from inspo.utils.config import Config
from inspo.utils.paths import IN_CHECKOUT, PROJECT_ROOT

PACKAGES = ("torch", "numpy", "sacred", "jax", "jaxlib", "jaxmarl", "h5py", "pysc2", "smac")


def record_of(config: Config, argv: Sequence[str]) -> dict[str, Any]:
    """What the configuration does not say and a reader of the results will ask."""
    return {
        "command_line": list(argv),
        "config": config.algorithm,
        "env_config": config.environment,
        "presets": list(config.notes),
        "git_commit": git_commit(PROJECT_ROOT if IN_CHECKOUT else None),
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit(root: Path | None) -> str | None:
    """The commit of the checkout `root`, `-dirty` where tracked files differ, those in results/
    apart: tables rewritten after a run change nothing of the next one. Outside of git, as in the
    Docker image or an installed package, what the environment says in INSPO_COMMIT, or None."""
    unknown = os.environ.get("INSPO_COMMIT") or None
    if root is None:
        return unknown
    status = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results"]
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10
            )
            for command in (["rev-parse", "--verify", "HEAD"], status)
        )
    except (OSError, subprocess.TimeoutExpired):
        return unknown
    if head.returncode or changes.returncode:
        return unknown
    return head.stdout.strip() + ("-dirty" if changes.stdout else "")
