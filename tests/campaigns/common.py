"""What the campaigns share: their options, and the line of figures that each ends with.

A campaign tries the program at random for some minutes. It is run by hand, as in
`python tests/campaigns/kills.py --minutes 20 --seed 1`; `./test.sh` does not run it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "package"))


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """A parser with --minutes (how long to go on) and --seed (the same seed, the same tries)."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--minutes", type=float, default=20.0, help="how long to go on (default: 20)")
    made.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    return made


def tries(minutes: float) -> Iterator[int]:
    """0, 1, 2, ... until the minutes are over; at least one."""
    end = time.monotonic() + 60 * minutes
    number = 0
    while number == 0 or time.monotonic() < end:
        yield number
        number += 1


def report(name: str, figures: Mapping[str, float]) -> None:
    """Print the campaign's one line of figures: `kills: kills 141, failures 0`."""
    print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in figures.items()), flush=True)
