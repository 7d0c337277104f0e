"""Where the package lies, and where runs write.

A checkout is known by its `pyproject.toml` beside `src/`. There, results and datasets stand in the
checkout, wherever a command is typed; an installed package writes below the current folder.
"""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
IN_CHECKOUT = PACKAGE.name == "src" and (PACKAGE.parent / "pyproject.toml").is_file()
PROJECT_ROOT = PACKAGE.parent if IN_CHECKOUT else Path.cwd()
CONFIG_DIR = PACKAGE / "config"
POLICIES = PACKAGE / "policies"


def commands_here(text: str, in_checkout: bool = IN_CHECKOUT) -> str:
    """A message's commands and folders as they are typed here.

    Messages are written for a checkout. An installed package has console commands in place of
    `python src/X.py` and `./run.sh`, and its own folder in place of `src/`.

    >>> commands_here("see ./run.sh, python src/dataset.py list", in_checkout=False)
    'see inspo, inspo-dataset list'
    """
    if in_checkout:
        return text
    text = re.sub(r"python src/main\.py|\./run\.sh", "inspo", text)
    text = re.sub(r"python src/(\w+)\.py", r"inspo-\1", text)
    return text.replace("src/config", str(CONFIG_DIR))
