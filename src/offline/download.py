"""`python src/dataset.py download SOURCE/MAP`: fetches a published dataset and converts it.

What comes stays in `{datasets_dir}/downloads`, with a ledger of sizes and SHA-256: what arrived
first is what must be there, and must arrive, ever after. See docs/downloads.md.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inspo.offline.archives import is_archive, require_archive, unpack
from inspo.offline.formats import load_dataset
from inspo.offline.formats.canonical_writer import write_dataset
from inspo.offline.formats.common import describe_content
from inspo.offline.scratch import AUTO
from inspo.offline.sources import Source, find_source
from inspo.offline.transfer import fetch
from inspo.utils import files
from inspo.utils.errors import DatasetError

JUNK = "__MACOSX"  # what macOS adds to archives: the same names once more


@dataclass(frozen=True)
class Job:
    """One call of `download`: what, where to, and how."""

    source: Source
    datasets_dir: Path
    force: bool
    log: Callable[[str], None]
    progress: bool

    @property
    def downloads(self) -> Path:
        return self.datasets_dir / "downloads"

    @property
    def ledger(self) -> Path:
        return self.downloads / "ledger.json"

    def target(self, quality: str) -> Path:
        return self.datasets_dir / self.source.target(quality)

    def wanted(self) -> dict[str, str]:
        """The qualities that are to be made, with their paths in the archive."""
        return {
            quality: path
            for quality, path in self.source.qualities.items()
            if self.force or not self.target(quality).exists()
        }


def download(
    name: str,
    datasets_dir: Path,
    *,
    from_file: Path | None = None,
    force: bool = False,
    log: Callable[[str], None] = print,
    progress: bool = True,
    known: Mapping[str, Source] | None = None,
) -> list[Path]:
    """Fetch `SOURCE/MAP` and convert its qualities; returns the files that were written.

    from_file: what was fetched by hand, an archive, a folder or a dataset. force: fetch it again,
    accept other bytes than last time, overwrite converted files. known: another catalogue.
    Raises DatasetError with what to do; nothing half-written stands under a final name then.
    """
    source = find_source(name, known)
    job = Job(source, Path(datasets_dir), force, log, progress)
    place = job.downloads / (source.archive or source.name).replace("/", "_")
    busy = "another process is at the same download: waiting for it"
    with files.locked(place, lambda: log(busy)):
        if not job.wanted():
            log(f"{name}: all of it is here already: {_listed(map(job.target, source.qualities))}")
            return []
        if from_file is not None:
            return _from_hand(job, Path(from_file))
        if source.archive is not None:
            archive = _obtain(job, source.address, source.archive)
            return _from_archive(job, archive, source.address)
        for path in job.wanted().values():
            for file in source.files:
                _obtain(job, f"{source.address}/{path}/{file}", f"{source.name}/{path}/{file}")
        return _convert_parts(job, job.downloads / source.name, source.address)


def _from_hand(job: Job, path: Path) -> list[Path]:
    """Convert what the user has fetched, where it lies."""
    if not path.exists():
        raise DatasetError(f"--from-file {path}: there is no such file. {_advice(job.source)}")
    if not os.access(path, os.R_OK):
        raise DatasetError(f"--from-file {path}: no permission to read it. Change its mode.")
    origin = f"{job.source.address}, fetched by hand as {path.name}"
    if path.is_dir():
        return _convert_parts(job, path, origin)
    if is_archive(path):
        key = job.source.archive or f"{job.source.name}/{path.name}"
        facts = _checked(job, key, path)
        made = _from_archive(job, path, origin)
    else:
        key = f"{job.source.name}/{path.name}"
        facts = _checked(job, key, path)
        made = _convert_parts(job, path, origin, [describe_content(path)])
    _record(job, key, facts)  # not before: what is refused never arrived
    return made


def _from_archive(job: Job, archive: Path, origin: str) -> list[Path]:
    """Unpack the qualities that are wanted beside the ledger, convert them, remove them again."""
    folder = job.downloads / job.source.source / f".{job.source.map_name}.unpacked"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed; we hold the lock
    marks = [_normal(f"/{ending}/") for ending in job.wanted().values()]

    def wanted(name: str) -> bool:
        return JUNK not in name.split("/") and any(mark in _normal(f"/{name}/") for mark in marks)

    try:
        job.log(f"unpacking {archive}")
        names = unpack(archive, folder, wanted)
        return _convert_parts(job, folder, origin, names, str(archive))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------- from parts to datasets


def _convert_parts(
    job: Job, root: Path, origin: str, names: list[str] | None = None, shown: str = ""
) -> list[Path]:
    """Convert every wanted quality that is found below `root`; DatasetError if none is.

    One that cannot be converted does not keep the others from it. names: what there is, for the
    error; shown: what to call `root`.
    """
    shown = shown or str(root)
    wanted = job.wanted()
    parts = find_parts(root, wanted)
    if not parts:
        names = names or [file.name for file in root.glob("*")]
        raise DatasetError(
            f"{shown}: expected {_listed(wanted.values())} in it, found "
            f"{_listed(names[:12]) or 'nothing'}{', ...' if len(names) > 12 else ''}. Check that "
            f"it is {job.source.name}; archives inside of it must be unpacked first. "
            f"{_advice(job.source)}"
        )
    if absent := wanted.keys() - parts.keys():
        job.log(f"{shown}: not in it, left out: {_listed(sorted(absent))}")
    made, errors = [], []
    for quality, path in parts.items():
        try:
            made.append(_convert(job, quality, path, origin))
        except DatasetError as error:
            errors.append(str(error))
    if errors:
        done = f"\nConverted: {_listed(made)}." if made else ""
        raise DatasetError("\n".join(errors) + done)
    return made


def _convert(job: Job, quality: str, path: Path, origin: str) -> Path:
    """One quality as a canonical file under its final name."""
    source, target = job.source, job.target(quality)
    job.log(f"converting {quality} to {target}")
    data = load_dataset(
        path,
        env=source.env,
        map_name=source.map_name,
        quality=quality,
        episode_limit=source.episode_limit,
        in_memory=AUTO,
        cast=True,
    )
    metadata = replace(
        data.metadata,
        env=source.env,
        quality=quality,
        source=f"{source.name} from {origin}; {data.metadata.source}",
    )
    write_dataset(target, replace(data, metadata=metadata), overwrite=job.force)
    return target


def find_parts(root: Path, qualities: Mapping[str, str]) -> dict[str, Path]:
    """quality -> the file or folder at or below `root` whose path ends as the catalogue says."""
    paths = [root.resolve()]
    for folder, folders, names in os.walk(paths[0]):
        folders[:] = sorted(name for name in folders if name != JUNK)
        paths += [Path(folder, name) for name in (*folders, *sorted(names))]
    parts: dict[str, Path] = {}
    for path in paths:
        for quality, ending in qualities.items():
            if _normal(f"/{path}").endswith(_normal(f"/{ending}")):
                if quality in parts:
                    raise DatasetError(
                        f"{root}: '{ending}' is there twice, {parts[quality]} and {path}. Name "
                        "the right one with --from-file."
                    )
                parts[quality] = path
    return parts


def _normal(path: str) -> str:
    """A path without what may differ: `Medium-Replay` and `medium_replay` are the same."""
    return path.lower().replace("-", "_")


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


# ------------------------------------------------------------------------------- one file, checked


def _obtain(job: Job, address: str, key: str) -> Path:
    """`downloads/key`: as it is if it is what arrived first, fetched from `address` otherwise."""
    path = job.downloads / key
    if path.exists() and not job.force:
        _record(job, key, _checked(job, key, path))
        return path
    arriving = path.with_name(f"{path.name}.new")
    files.new_parents(path)
    job.log(f"fetching {address}")
    try:
        stated = fetch(address, arriving, log=job.log, progress=job.progress)
        _check_content(arriving, address)
        _record(job, key, _checked(job, key, arriving, stated))
    except DatasetError as error:
        arriving.unlink(missing_ok=True)  # going on with what is wrong would never make it right
        raise DatasetError(f"{error}\n{_advice(job.source)}") from error
    os.replace(arriving, path)
    return path


def _check_content(path: Path, address: str) -> None:
    """DatasetError unless a file is what its address says: an array, JSON, or an archive."""
    name, ending = f"what came from {address}", address.rpartition(".")[2]
    if ending not in ("npy", "json"):
        return require_archive(path, name)
    with open(path, "rb") as file:
        head = file.read(6)
    if not (head == b"\x93NUMPY" if ending == "npy" else head.lstrip().startswith(b"{")):
        raise DatasetError(f"{name}: expected {ending}, found {describe_content(path)}.")


def _advice(source: Source) -> str:
    """How to go on without the network of this machine."""
    content = _listed(source.qualities.values())
    if source.archive:
        place = f"{source.address} (described at {source.page})"
        what = f"FILE is that archive, or a folder with its content: {content}."
    else:
        place = f"{source.page} at the commit in {source.address}"
        what = f"FILE is a folder or an archive with {content}."
    return (
        f"To go on by hand, fetch {place} with a browser or on another machine, then run\n"
        f"  python src/dataset.py download {source.name} --from-file FILE\n{what}"
    )


# ------------------------------------------------------------------------------------- the ledger


def read_ledger(path: Path) -> dict[str, dict[str, Any]]:
    """What arrived when, how large, with which SHA-256: key -> facts."""
    try:
        entries = json.loads(files.read_text(path))
        if all({"bytes", "sha256"} <= entry.keys() for entry in entries.values()):
            return dict(entries)
        reason = "an entry without its size or hash"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise DatasetError(
        f"{path}: the record of what was fetched cannot be read ({reason}). Restore it, "
        "or remove it: then what lies beside it is taken as it is."
    )


def _checked(job: Job, key: str, path: Path, stated: str | None = None) -> dict[str, Any]:
    """Size and hash of a file; DatasetError unless they are what is known of it.

    Known are those of the catalogue, of the host (`stated`), and of what arrived first under this
    key. With `force` what is there now is what must be there from now on.
    """
    facts: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    first = read_ledger(job.ledger).get(key, {})
    published = (job.source.sha256 if key == job.source.archive else None) or stated
    arrived = f"arrived on {first.get('arrived', 'an unknown day')}"
    for known, when in ((published, "was published"), (first.get("sha256"), arrived)):
        if known not in (None, facts["sha256"]) and not job.force:
            raise DatasetError(
                f"{path}: has changed: SHA-256 {known[:16]}... {when}, now it is "
                f"{facts['sha256'][:16]}.... It is damaged, or was published anew. To take it as "
                "it is, run the command again with --force."
            )
    return facts


def _record(job: Job, key: str, facts: dict[str, Any]) -> None:
    """Put what `_checked` gave into the ledger."""
    ledger = job.ledger
    with files.locked(ledger):
        entries = read_ledger(ledger)
        if entries.get(key, {}).get("sha256") == facts["sha256"]:
            return
        arrived = time.strftime("%Y-%m-%d", time.gmtime())
        entries[key] = facts | {"address": job.source.address, "arrived": arrived}
        try:
            files.write(ledger, (json.dumps(entries, indent=2, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise DatasetError(f"{ledger}: cannot be written ({error.strerror}).") from error
    job.log(f"recorded {key}: {facts['bytes']} bytes, SHA-256 {facts['sha256']}")
