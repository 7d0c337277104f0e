"""Unpacks archives that nobody here has made: no way out of the folder, no bombs.

zipfile and tarfile do the work, and tarfile's data filter judges the entries of both. An archive is
refused as a whole if an entry is no plain file or folder, or has a name that is not harmless, or if
all of them together would take more than the disk has, or many times what the archive itself takes.
"""

from __future__ import annotations

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
    names: list[str] = []
    found: set[PurePosixPath] = set()
    total = 0
    for entry, member in _entries(archive):
        if problem := _problem(entry, folder):
            raise DatasetError(
                f"{path}: refused, nothing was unpacked: its entry {entry.name[:100]!a} {problem}. "
                "A dataset needs nothing of the kind: do not trust this file."
            )
        if PurePosixPath(entry.name) in found:
            raise ValueError(f"it has two entries {entry.name[:100]!r}")
        found.add(PurePosixPath(entry.name))
        names.append(entry.name)
        # Entries that are not wanted count as well: a tar archive is read through to skip them.
        total += entry.size
        if total > allowed or len(names) > MAX_ENTRIES:
            raise DatasetError(
                f"{path}: refused, nothing was unpacked: its {size} bytes would become more than "
                f"{allowed} bytes or {MAX_ENTRIES} entries, as in an archive made to fill "
                "disks. Do not trust this file."
            )
        if not wanted(entry.name):
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
    return names


def _entries(archive: Archive) -> Iterator[tuple[tarfile.TarInfo, Member]]:
    """Each entry as tarfile describes it, so that one filter judges both kinds of archive."""
    if isinstance(archive, tarfile.TarFile):
        yield from ((member, member) for member in archive)
        return
    plain = {0: tarfile.REGTYPE, stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE}
    for info in archive.infolist():
        entry = tarfile.TarInfo(info.orig_filename)  # zipfile cuts names at a zero byte
        entry.size = info.file_size
        entry.type = plain.get(stat.S_IFMT(info.external_attr >> 16), tarfile.SYMTYPE)
        yield entry, info


def _problem(entry: tarfile.TarInfo, folder: Path) -> str:
    """Why an entry must not be unpacked; empty if it may be."""
    if not (entry.isreg() or entry.isdir()):
        return "is neither a file nor a folder"
    if entry.name.startswith("/") or "\\" in entry.name or not entry.name.isprintable():
        return "has an absolute path, or a name with a backslash or a control character"
    try:
        tarfile.data_filter(entry, str(folder))
    except tarfile.FilterError:
        return "leads out of the folder"
    return ""
