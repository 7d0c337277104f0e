"""The catalogue of published datasets: which there are, where, and what becomes of them.

It stands in `config/sources.yaml`, so that a moved address is one line of data. This module only
reads it; `offline/download.py` acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import yaml
from inspo.utils.errors import DatasetError, nearest
from inspo.utils.paths import CONFIG_DIR

CATALOGUE = CONFIG_DIR / "sources.yaml"


@dataclass(frozen=True)
class Source:
    """What one `download SOURCE/MAP` fetches and makes.

    archive: name of the archive below `{datasets_dir}/downloads`, None if `files` are fetched, for
    each quality from `address/PATH/`. qualities: quality here -> path in the archive. bytes: size
    of what is fetched, None where nobody knows it before. episode_limit: the simulator's, None
    where the data say it or nobody does.
    """

    source: str
    about: str
    env: str
    map_name: str
    address: str
    page: str
    archive: str | None
    files: tuple[str, ...]
    qualities: dict[str, str]
    bytes: int | None
    episode_limit: int | None = None

    @property
    def name(self) -> str:
        return f"{self.source}/{self.map_name}"

    def target(self, quality: str) -> PurePosixPath:
        """The converted file, relative to datasets_dir."""
        return PurePosixPath(self.env, f"{self.map_name}_{quality}.h5")

    def content(self) -> str:
        """What is inside, in words: the paths of all qualities."""
        return ", ".join(self.qualities.values())


@dataclass(frozen=True)
class KnownDataset:
    """One line of `list`: a file that can be had. bytes: of the whole download of `name`."""

    env: str
    map_name: str
    quality: str
    source: str
    name: str
    bytes: int | None
    address: str
    target: str


def read_catalogue(path: Path = CATALOGUE) -> dict[str, Source]:
    """`SOURCE/MAP` -> `Source`, in the order of the file."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    found: dict[str, Source] = {}
    for entry in entries:
        for map_name in entry["maps"]:
            source = _source(entry, map_name)
            assert source.name not in found, f"{path}: {source.name} stands twice"
            found[source.name] = source
    return found


def _source(entry: dict, map_name: str) -> Source:
    def fill(text: str) -> str:
        return text.replace("{map}", map_name)

    return Source(
        source=entry["source"],
        about=entry["about"],
        env=entry["env"],
        map_name=map_name,
        address=fill(entry["address"]),
        page=entry["page"],
        archive=fill(entry["archive"]) if "archive" in entry else None,
        files=tuple(entry.get("files", ())),
        qualities={quality: fill(path) for quality, path in entry["qualities"].items()},
        bytes=entry.get("bytes", {}).get(map_name),
        episode_limit=entry.get("limits", {}).get(map_name),
    )


@cache
def catalogue() -> dict[str, Source]:
    """The catalogue that the project ships."""
    return read_catalogue()


def find_source(name: str, known: dict[str, Source] | None = None) -> Source:
    """The entry `SOURCE/MAP`; DatasetError with the nearest names otherwise."""
    known = catalogue() if known is None else known
    if name in known:
        return known[name]
    raise DatasetError(
        f"'{name}': expected SOURCE/MAP, found no such dataset in the catalogue."
        f"{nearest(name, known)} `python src/dataset.py list` shows them all."
    )


def known_sources() -> list[KnownDataset]:
    """Every dataset of the catalogue, one entry per quality, in the catalogue's order."""
    return [
        KnownDataset(
            env=source.env,
            map_name=source.map_name,
            quality=quality,
            source=source.source,
            name=source.name,
            bytes=source.bytes,
            address=source.address,
            target=str(source.target(quality)),
        )
        for source in catalogue().values()
        for quality in source.qualities
    ]
