"""Where the package lies, and where runs write.

A checkout is known by its `pyproject.toml` beside `src/`. There, results and datasets stand in the
checkout, wherever a command is typed; an installed package writes below the current folder.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
IN_CHECKOUT = PACKAGE.name == "src" and (PACKAGE.parent / "pyproject.toml").is_file()
PROJECT_ROOT = PACKAGE.parent if IN_CHECKOUT else Path.cwd()
CONFIG_DIR = PACKAGE / "config"
POLICIES = PACKAGE / "policies"
