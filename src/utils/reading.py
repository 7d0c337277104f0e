"""Reading small files that others may have written: never an endless one, never a huge one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

SMALL = 64 << 20  # bytes; our own JSON files have some thousands


def require_file(path: Path) -> int:
    """The size of a regular file; OSError for a folder, a device or a pipe, which may never end."""
    facts = path.stat()
    if stat.S_ISDIR(facts.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return facts.st_size


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file; OSError or ValueError if it is none."""
    size = require_file(path)
    if size > SMALL:
        raise ValueError(f"{size:,} bytes, expected at most {SMALL:,}")
    return path.read_text(encoding="utf-8")
