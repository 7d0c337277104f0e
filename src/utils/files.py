"""Locks, temporary files, small files of others, and names that become paths.

No lock and no temporary file follows a link or stays for ever; nothing that is read is endless.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from inspo.utils.errors import ConfigError, DatasetError

TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp")
YOUNG = 60  # seconds in which a temporary file may not be locked yet
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


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_component(key: str, name: str) -> str:
    """`name`, the value of `key`, as one component of a path; ConfigError if it is none."""
    if name.startswith(".") or any(c in "/\\" or ord(c) < 32 for c in name):
        raise ConfigError(
            f"{key}: expected a plain name, which becomes part of a file's name: no slash, no "
            f"control character, no dot in front; found {name!r}."
        )
    return name


def new_parents(path: Path) -> None:
    """Make the folder in which `path` shall stand; DatasetError if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(
            f"{path.parent}: cannot be made ({error.strerror}). Choose another folder."
        ) from error


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time makes what stands at `path`.

    waiting: called if another process has the lock. The lock goes with the process, and its file
    `.{name}.lock` with the last that holds it. Raises DatasetError where there can be no lock.
    """
    new_parents(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        handle = _lock(lock, waiting)
    except OSError as error:
        raise DatasetError(
            f"{lock}: cannot be written ({error.strerror}). Remove it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _lock(lock: Path, waiting: Callable[[], None]) -> int:
    """The open file `lock`, locked."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                _flock(handle, fcntl.LOCK_EX)
            # Whoever had it has removed the file: another process may hold a new one by now.
            # One look, not two: the file may go between "is it there" and "which one is it".
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.lstat(lock)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int, operation: int) -> None:
    """Lock an open file, where the disk can: some network disks cannot, and are used unlocked."""
    try:
        fcntl.flock(handle, operation)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


@contextlib.contextmanager
def temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new empty file or folder beside `path`, to be renamed to it; removed if it is not.

    What killed processes left in this folder goes as well. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    name = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    if folder:
        name.mkdir()
    else:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        _flock(handle, fcntl.LOCK_EX)
        yield name
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            _remove(name)


def write(path: Path, content: bytes) -> None:
    """Replace a file in one move, so that a kill leaves the old one. Raises OSError."""
    with temporary(path) as new:
        new.write_bytes(content)
        os.replace(new, path)


def aside(folder: Path) -> Path:
    """Where a folder stands while another takes its name."""
    return folder.with_name(f".{folder.name}.replaced")


def replace_folder(new: Path, folder: Path) -> None:
    """Give `new` the name `folder`; one that has it is there until the last moment."""
    settle(folder)
    if folder.exists():
        os.replace(folder, aside(folder))
    try:
        os.replace(new, folder)
        sync(folder.parent)
    finally:
        settle(folder)


def settle(folder: Path) -> None:
    """Remove what stepped aside for this folder, or give it the name again if none has it.

    A process that was killed while it replaced the folder has not done so.
    """
    old = aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.replace(old, folder)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders that no living process has locked."""
    for name in folder.glob(".*.tmp"):
        if not TEMPORARY.fullmatch(name.name):
            continue
        with contextlib.suppress(OSError):
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(handle).st_mtime > YOUNG:
                    _remove(name)
            finally:
                os.close(handle)


def _remove(name: Path) -> None:
    if name.is_dir():
        shutil.rmtree(name, ignore_errors=True)
    else:
        name.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
