"""`python src/dataset.py download SOURCE/MAP`: fetches a published dataset and converts it.

What comes stays in `{datasets_dir}/downloads`, with a ledger of sizes and SHA-256: what arrived
first is what must be there, and must arrive, ever after. See docs/downloads.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from inspo.offline.archives import is_archive, require_archive, unpack
from inspo.offline.formats import load_dataset
from inspo.offline.formats.canonical import write_dataset
from inspo.offline.formats.common import describe_content
from inspo.offline.scratch import AUTO
from inspo.offline.sources import Source, catalogue, find_source, known_sources
from inspo.offline.transfer import Patience, TransferError, discard, fetch
from inspo.utils.errors import DatasetError
from inspo.utils.interrupts import sigterm_as_interrupt
from inspo.utils.paths import PROJECT_ROOT
from tqdm import tqdm

__all__ = ["add_parser", "download", "known_sources"]

EXAMPLES = """examples:
  python src/dataset.py download cfcql/5m_vs_6m
  python src/dataset.py download cfcql/5m_vs_6m --from-file 5m_vs_6m.zip
  python src/dataset.py download alberdice/bridge --datasets-dir /data/marl

The same command goes on with a download that was broken off.
names: """


@dataclass(frozen=True)
class Job:
    """One call of `download`: what, where to, and how."""

    source: Source
    datasets_dir: Path
    force: bool
    say: Callable[[str], None]
    progress: bool
    patience: Patience

    @property
    def downloads(self) -> Path:
        return self.datasets_dir / "downloads"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.downloads / "ledger.json")

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
    say: Callable[[str], None] = print,
    progress: bool = True,
    patience: Patience | None = None,
    known: Mapping[str, Source] | None = None,
) -> list[Path]:
    """Fetch `SOURCE/MAP` and convert its qualities; returns the files that were written.

    from_file: what was fetched by hand, an archive, a folder or a dataset. force: fetch it again,
    accept other bytes than last time, overwrite converted files. known: another catalogue.
    Raises DatasetError with what to do; nothing half-written stands under a final name then.
    """
    source = find_source(name, known)
    job = Job(source, Path(datasets_dir), force, say, progress, patience or Patience())
    lock = job.downloads / f".{(source.archive or source.name).replace('/', '_')}.lock"
    with _locked(lock, say):
        if not job.wanted():
            say(f"{name}: all of it is here already: {_listed(map(job.target, source.qualities))}")
            return []
        if from_file is not None:
            return _from_hand(job, Path(from_file))
        if source.archive is None:
            return _from_files(job)
        archive = _obtain(job, source.address, source.archive, _check_archive)
        return _from_archive(job, archive, source.address)


def _from_files(job: Job) -> list[Path]:
    """Fetch the files of each quality into a folder, and convert that."""
    folder = Path(job.source.name)
    for path in job.wanted().values():
        for file in job.source.files:
            key = (folder / path / file).as_posix()
            _obtain(job, f"{job.source.address}/{path}/{file}", key, _check_array)
    return _convert_parts(job, job.downloads / folder, job.source.address)


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
        _check_against_ledger(job, key, path, job.source.address)
        return _from_archive(job, path, origin)
    if not find_parts(path, job.source.qualities):
        raise DatasetError(
            f"--from-file {path}: found {describe_content(path)}. {_advice(job.source)}"
        )
    _check_against_ledger(job, f"{job.source.name}/{path.name}", path, job.source.address)
    return _convert_parts(job, path, origin)


def _from_archive(job: Job, archive: Path, origin: str) -> list[Path]:
    """Unpack the qualities that are wanted beside the ledger, convert them, remove them again."""
    folder = job.downloads / job.source.source / f".{job.source.map_name}.unpacked"
    _make_folder(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed; we hold the lock
    try:
        job.say(f"unpacking {archive}")
        names = unpack(archive, folder, _selector(job.wanted().values()), str(archive))
        return _convert_parts(job, folder, origin, names, str(archive))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------- from parts to datasets


def _convert_parts(
    job: Job, root: Path, origin: str, names: Iterable[str] | None = None, shown: str = ""
) -> list[Path]:
    """Convert every wanted quality that is found below `root`; DatasetError if none is.

    One that cannot be converted does not keep the others from it. names: what there is, for the
    error; shown: what to call `root`.
    """
    shown = shown or str(root)
    wanted = job.wanted()
    parts = find_parts(root, wanted)
    if not parts:
        names = [file.name for file in root.glob("*")] if names is None else list(names)
        raise DatasetError(
            f"{shown}: expected {_listed(wanted.values())} in it, found "
            f"{_listed(names[:12]) or 'nothing'}{', ...' if len(names) > 12 else ''}. Check that "
            f"it is {job.source.name}; archives inside of it must be unpacked first. "
            f"{_advice(job.source)}"
        )
    if absent := wanted.keys() - parts.keys():
        job.say(f"{shown}: not in it, left out: {_listed(sorted(absent))}")
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
    job.say(f"converting {quality} to {target}")
    _make_folder(target.parent)
    data = load_dataset(
        path,
        env=source.env,
        map_name=source.map_name,
        quality=quality,
        episode_limit=source.episode_limit,
        in_memory=AUTO,
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
    for folder, folders, files in os.walk(paths[0]):
        folders[:] = sorted(name for name in folders if name != JUNK)
        paths += [Path(folder, name) for name in (*folders, *sorted(files))]
    found: dict[str, Path] = {}
    for path in paths:
        for quality, ending in qualities.items():
            if _normal(f"/{path}").endswith(_normal(f"/{ending}")):
                if quality in found:
                    raise DatasetError(
                        f"{root}: '{ending}' is there twice, {found[quality]} and {path}. Name "
                        "the right one with --from-file."
                    )
                found[quality] = path
    return found


JUNK = "__MACOSX"  # what macOS adds to archives: the same names once more


def _selector(endings: Iterable[str]) -> Callable[[str], bool]:
    """Whether an entry of an archive belongs to one of these paths."""
    marks = [_normal(f"/{ending}/") for ending in endings]

    def wanted(name: str) -> bool:
        return JUNK not in name.split("/") and any(mark in _normal(f"/{name}/") for mark in marks)

    return wanted


def _normal(path: str) -> str:
    """A path without what may differ: `Medium-Replay` and `medium_replay` are the same."""
    return path.lower().replace("-", "_")


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


# ------------------------------------------------------------------------------- one file, checked


def _obtain(job: Job, address: str, key: str, check: Callable[[Path, str], None]) -> Path:
    """`downloads/key`: as it is if it is what arrived first, fetched from `address` otherwise."""
    path = job.downloads / key
    if path.exists() and not job.force:
        _check_against_ledger(job, key, path, address)
        return path
    partial = path.with_name(path.name + ".part")
    _make_folder(path.parent)
    job.say(f"fetching {address}")
    try:
        fetch(
            address,
            partial,
            patience=job.patience,
            say=job.say,
            progress=job.progress,
            name=path.name,
        )
    except TransferError as error:
        kept = ""
        if partial.exists() and partial.stat().st_size:
            kept = (
                f" {partial.stat().st_size / 1e6:.1f} MB are here; the same command goes on there."
            )
        raise DatasetError(
            f"{address}: cannot be fetched: {error}.{kept}\n{_advice(job.source)}"
        ) from error
    try:
        check(partial, address)
        _check_against_ledger(job, key, partial, address)
    except DatasetError as error:
        discard(partial)  # going on with what is wrong would never make it right
        raise DatasetError(f"{error}\n{_advice(job.source)}") from error
    os.replace(partial, path)
    discard(partial)
    return path


def _check_archive(path: Path, address: str) -> None:
    require_archive(path, f"what came from {address}")


def _check_array(path: Path, address: str) -> None:
    """One file of an AlberDICE folder: JSON or a `.npy` array, as its address says."""
    with open(path, "rb") as file:
        head = file.read(6)
    if address.endswith(".npy"):
        good = head == b"\x93NUMPY"
    else:
        good = head.lstrip().startswith(b"{")
    if not good:
        raise DatasetError(
            f"what came from {address}: expected {address.rpartition('.')[2]}, found "
            f"{describe_content(path)}."
        )


def _advice(source: Source) -> str:
    """How to go on without the network of this machine."""
    if source.archive:
        place = f"{source.address} (described at {source.page})"
        what = f"FILE is that archive, or a folder with its content: {source.content()}."
    else:
        place = f"{source.page} at the commit in {source.address}"
        what = f"FILE is a folder or an archive with {source.content()}."
    return (
        f"To go on by hand, fetch {place} with a browser or on another machine, then run\n"
        f"  python src/dataset.py download {source.name} --from-file FILE\n{what}"
    )


# ------------------------------------------------------------------------------------- the ledger


class Ledger:
    """What arrived when, how large, with which SHA-256: key -> facts, in one JSON file."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, dict]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        if not isinstance(entries, dict) or not all(
            isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
            for entry in entries.values()
        ):
            raise self._damaged("not what is written there")
        return entries

    def _damaged(self, reason: object) -> DatasetError:
        return DatasetError(
            f"{self.path}: the record of what was fetched cannot be read ({reason}). Restore it, "
            "or remove it: then what lies beside it is taken as it is."
        )

    def record(self, key: str, facts: dict) -> None:
        """Add or replace one entry. The file changes at once or not at all."""
        with _locked(self.path.with_name(f".{self.path.name}.lock")):
            entries = self.read() | {key: facts}
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            try:
                temporary.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
                os.replace(temporary, self.path)
            except OSError as error:
                raise DatasetError(f"{self.path}: cannot be written ({error.strerror}).") from error


def _check_against_ledger(job: Job, key: str, path: Path, address: str) -> None:
    """Record a file that arrives for the first time; DatasetError if it is not what arrived then.

    With `force` what is there now becomes what must be there.
    """
    facts = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    known = job.ledger.read().get(key)
    same = known is not None and all(known[what] == facts[what] for what in facts)
    if same:
        return
    if known is not None and not job.force:
        raise DatasetError(
            f"{path}: has changed: {known['bytes']} bytes with SHA-256 {known['sha256'][:16]}... "
            f"arrived on {known.get('arrived', 'an unknown day')}, now it is {facts['bytes']} "
            f"bytes with {facts['sha256'][:16]}.... It is damaged, or was published anew. "
            "To take the new one, run the command again with --force."
        )
    arrived = time.strftime("%Y-%m-%d", time.gmtime())
    job.ledger.record(key, facts | {"address": address, "arrived": arrived})
    job.say(f"recorded {key}: {facts['bytes']} bytes, SHA-256 {facts['sha256']}")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be made ({error.strerror}). Choose another folder with --datasets-dir."
        ) from error


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """One process at a time; the lock goes with the process, the empty file stays."""
    _make_folder(path.parent)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror}). Choose another folder with "
            "--datasets-dir."
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if say is not None:
                say("another process is at the same download: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# ---------------------------------------------------------------------------------------- command


def add_parser(subparsers) -> None:
    """Add `download` to the tool's commands."""
    parser = subparsers.add_parser(
        "download",
        help="fetch a published dataset and convert it",
        description="Fetch a published dataset and convert each of its qualities to "
        "DATASETS_DIR/ENV/MAP_QUALITY.h5.",
        epilog=EXAMPLES + ", ".join(catalogue()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="SOURCE/MAP", help="what to fetch, as `list` shows it")
    parser.add_argument(
        "--from-file",
        type=Path,
        metavar="FILE",
        help="take this archive, folder or dataset, which was fetched by hand",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="fetch it again, even if it changed, and overwrite what was converted",
    )
    parser.add_argument(
        "--datasets-dir",
        type=Path,
        default=PROJECT_ROOT / "datasets",
        metavar="DIR",
        help="where datasets stand (default: datasets/ in the repository's root)",
    )
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """The command; the paths it wrote go to stdout. Returns the exit status."""

    def say(message: str) -> None:
        tqdm.write(message, file=sys.stderr)

    try:
        with sigterm_as_interrupt():
            made = download(
                options.name,
                options.datasets_dir,
                from_file=options.from_file,
                force=options.force,
                say=say,
            )
    except KeyboardInterrupt as error:
        say("stopped; the same command goes on where this one was")
        return getattr(error, "exit_status", 130)
    for path in made:
        print(path)
    return 0
