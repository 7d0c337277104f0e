"""Unpacks archives that nobody here has made: no way out of the folder, no bombs.

zipfile and tarfile (with its data filter) do the work. An archive is refused as a whole if an entry
is no plain file or folder, or has a name that is not harmless, or if all of them together would
take more than the disk has, or many times what the archive itself takes.
"""

from __future__ import annotations

import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from inspo.offline.formats import canonical
from inspo.offline.formats.common import describe_content
from inspo.utils.errors import DatasetError

MAX_RATIO = 200  # unpacked to packed; padded HDF5 in a zip archive reaches some tens
SLACK = 64 << 20  # bytes that are fine whatever the archive's size
MAX_ENTRIES = 200_000
RESERVE = 64 << 20  # bytes of the disk that stay free

Archive = zipfile.ZipFile | tarfile.TarFile
Member = zipfile.ZipInfo | tarfile.TarInfo


def is_archive(path: Path) -> bool:
    """Whether it is a zip or tar archive, by content."""
    try:
        if canonical.recognises(path):  # HDF5 may contain whatever a zip archive ends with
            return False
        return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except Exception:  # whatever the decompressors raise
        return False


def require_archive(path: Path, name: str) -> None:
    """Raise DatasetError unless `path` begins and ends as an archive does. name: for the error."""
    if not is_archive(path):
        raise DatasetError(
            f"{name}: expected a zip or tar archive, found {describe_content(path)}, or one that "
            "is truncated."
        )


def unpack(path: Path, folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Unpack the entries whose name is `wanted` into the new folder `folder`.

    Returns the names of all entries. Raises DatasetError; nothing is left in `folder` then.
    """
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path) as archive:
            return _unpack(archive, path, folder, wanted)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, DatasetError) or not isinstance(error, Exception):
            raise
        if isinstance(error, OSError):
            raise DatasetError(
                f"{path}: cannot be unpacked ({error.strerror or error}). Make room, or fetch it "
                "again."
            ) from error
        raise DatasetError(  # whatever zipfile, tarfile and the decompressors raise
            f"{path}: the archive is damaged or truncated ({error or type(error).__name__}). "
            "Fetch it again."
        ) from error


def _unpack(archive: Archive, path: Path, folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    size = path.stat().st_size
    allowed = size * MAX_RATIO + SLACK
    free = shutil.disk_usage(folder).free - RESERVE
    names: set[PurePosixPath] = set()
    total = n_entries = 0
    for name, n_bytes, problem, member in _entries(archive):
        if problem:
            shown = name.encode("unicode_escape", errors="replace").decode()[:100]
            raise DatasetError(
                f"{path}: refused, nothing was unpacked: its entry '{shown}' "
                f"{problem}. A dataset needs nothing of the kind: do not trust this file."
            )
        # Entries that are not wanted count as well: a tar archive is read through to skip them.
        total, n_entries = total + n_bytes, n_entries + 1
        if total > allowed or n_entries > MAX_ENTRIES:
            raise DatasetError(
                f"{path}: refused, nothing was unpacked: its {size} bytes would become more than "
                f"{allowed} bytes or {MAX_ENTRIES} entries, as in an archive made to fill "
                "disks. Do not trust this file."
            )
        if PurePosixPath(name) in names:
            raise ValueError(f"it has two entries {name[:100]!r}")
        names.add(PurePosixPath(name))
        if not wanted(name):
            continue
        if total > free:
            raise DatasetError(
                f"{path}: unpacking needs {total / 1e6:.0f} MB or more, but only "
                f"{max(free, 0) / 1e6:.0f} MB are free in {folder.parent}. Make room and run the "
                "same command again."
            )
        if isinstance(archive, zipfile.ZipFile):
            archive.extract(member, folder)  # type: ignore[arg-type]
        else:
            archive.extract(member, folder, filter="data")  # type: ignore[arg-type]
    return [str(name) for name in names]


def _entries(archive: Archive) -> Iterator[tuple[str, int, str | None, Member]]:
    """Name, bytes, why it must not be unpacked (or None) of each entry, and the entry."""
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            # orig_filename: zipfile cuts names at a zero byte.
            problem = _bad_name(info.orig_filename) or _bad_kind(info.external_attr >> 16)
            encrypted = "is encrypted" if info.flag_bits & 1 else None
            yield info.filename, info.file_size, problem or encrypted, info
        return
    for member in archive:
        link = "is a link" if member.issym() or member.islnk() else None
        special = None if member.isreg() or member.isdir() else "is neither a file nor a folder"
        yield member.name, member.size, _bad_name(member.name) or link or special, member


def _bad_kind(mode: int) -> str | None:
    if stat.S_ISLNK(mode):
        return "is a link"
    plain = stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR)
    return None if plain else "is neither a file nor a folder"


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
