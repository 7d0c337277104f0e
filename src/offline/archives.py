"""Unpacks archives that nobody here has made: no way out of the folder, no bombs.

An entry is written only if it is a plain file or a folder with a harmless name, and all entries
together may take neither more than the disk has nor many times what the archive itself takes.
"""

from __future__ import annotations

import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from inspo.offline.formats import canonical
from inspo.offline.formats.common import describe_content
from inspo.utils.errors import DatasetError

MAX_RATIO = 200  # unpacked to packed; padded HDF5 in a zip archive reaches some tens
SLACK = 64 << 20  # bytes that are fine whatever the archive's size
MAX_ENTRIES = 200_000
RESERVE = 64 << 20  # bytes of the disk that stay free
CHUNK = 1 << 20

# What zipfile, tarfile and the decompressors raise on damaged archives.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
)


@dataclass(frozen=True)
class Entry:
    """One file or folder of an archive. problem: why it must not be unpacked, or None."""

    name: str
    size: int
    is_folder: bool
    problem: str | None
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether it is a zip or tar archive, by content."""
    try:
        if canonical.recognises(path):  # HDF5 may contain whatever a zip archive ends with
            return False
        return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except (*DAMAGED, OSError):
        return False


def require_archive(path: Path, name: str) -> None:
    """Raise DatasetError unless `path` begins and ends as an archive does. name: for the error."""
    if not is_archive(path):
        raise DatasetError(
            f"{name}: expected a zip or tar archive, found {describe_content(path)}, or one that "
            "is truncated."
        )


def unpack(path: Path, folder: Path, wanted: Callable[[str], bool], name: str = "") -> list[str]:
    """Unpack the entries whose name is `wanted` into the new folder `folder`.

    Returns the names of all entries. name: what to call the archive in errors. Raises DatasetError;
    nothing is left in `folder` then.
    """
    name = name or str(path)
    folder.mkdir(parents=True)
    try:
        return _unpack(path, folder, wanted, name)
    except DAMAGED as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DatasetError(
            f"{name}: the archive is damaged or truncated ({error or type(error).__name__}). "
            "Fetch it again."
        ) from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DatasetError(
            f"{name}: cannot be unpacked ({error.strerror or error}). Make room, or fetch it again."
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(path: Path, folder: Path, wanted: Callable[[str], bool], name: str) -> list[str]:
    size = path.stat().st_size
    allowed = size * MAX_RATIO + SLACK
    free = shutil.disk_usage(folder).free - RESERVE
    names: list[str] = []
    total = 0
    for entry in _entries(path):
        names.append(entry.name)
        problem = entry.problem or _bad_name(entry.name)
        if problem:
            raise DatasetError(
                f"{name}: refused, nothing was unpacked: its entry '{_shown(entry.name)}' "
                f"{problem}. A dataset needs nothing of the kind: do not trust this file."
            )
        # Entries that are not wanted count as well: a tar archive is read through to skip them.
        total += entry.size
        if total > allowed or len(names) > MAX_ENTRIES:
            raise DatasetError(
                f"{name}: refused, nothing was unpacked: its {size} bytes would become more than "
                f"{allowed} bytes or {MAX_ENTRIES} entries, as in an archive made to fill "
                "disks. Do not trust this file."
            )
        if not wanted(entry.name):
            continue
        if total > free:
            raise DatasetError(
                f"{name}: unpacking needs {total / 1e6:.0f} MB or more, but only "
                f"{max(free, 0) / 1e6:.0f} MB are free in {folder.parent}. Make room and run the "
                "same command again."
            )
        _write(entry, folder / PurePosixPath(entry.name))
    return names


def _write(entry: Entry, target: Path) -> None:
    """Write one entry. `x`: an entry that stands twice is an error, nothing is overwritten."""
    if entry.is_folder:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with entry.open() as source, open(target, "xb") as file:
        while block := source.read(CHUNK):
            written += len(block)
            if written > entry.size:
                raise ValueError(f"'{_shown(entry.name)}' is larger than the archive says")
            file.write(block)
    if written != entry.size:
        raise ValueError(f"'{_shown(entry.name)}' is shorter than the archive says")


# ---------------------------------------------------------------------------------------- entries


def _entries(path: Path) -> Iterator[Entry]:
    """The entries of a zip or tar archive, in order; of a zip archive all problems come first."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from sorted(_zip_entries(archive), key=lambda entry: entry.problem is None)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                yield Entry(
                    member.name,
                    max(member.size, 0) if member.isreg() else 0,
                    member.isdir(),
                    _tar_problem(member),
                    lambda member=member: archive.extractfile(member),
                )


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for info in archive.infolist():
        # orig_filename: zipfile cuts names at a zero byte and turns \ around on Windows.
        problem = _bad_name(info.orig_filename) or _zip_problem(info)
        yield Entry(
            info.filename,
            info.file_size,
            info.is_dir(),
            problem,
            lambda info=info: archive.open(info),
        )


def _zip_problem(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is neither a file nor a folder"
    return "is encrypted" if info.flag_bits & 1 else None


def _tar_problem(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return "is a link"
    if not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    return None


def _bad_name(name: str) -> str | None:
    """Why a name must not be used below a folder; None if it may be."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if "\\" in name or any(ord(character) < 32 for character in name):
        return "has a name with a backslash or a control character"
    if ".." in parts:
        return "leads out of the folder"
    if any(len(part.encode(errors="replace")) > 255 for part in parts) or len(name) > 1024:
        return "has too long a name"
    return None


def _shown(name: str) -> str:
    """A name as it may be printed."""
    return name.encode("unicode_escape", errors="replace").decode()[:100]
