"""What data there are: the published ones (config/sources.yaml), those here, those made here.

A moved address is one line of `sources.yaml`; `offline/download.py` fetches what stands there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from inspo.utils.command_line import text_table
from inspo.utils.errors import DatasetError, nearest
from inspo.utils.paths import CONFIG_DIR

CATALOGUE = CONFIG_DIR / "sources.yaml"


@dataclass(frozen=True)
class Source:
    """What one `download SOURCE/MAP` fetches and makes.

    archive: name of the archive below `{datasets_dir}/downloads`, None if `files` are fetched, for
    each quality from `address/PATH/`. qualities: quality here -> path in the archive. bytes: size
    of what is fetched, sha256: of the archive, None where nobody knows it before. episode_limit:
    the simulator's, None where the data say it or nobody does.
    """

    source: str
    env: str
    map_name: str
    address: str
    page: str
    archive: str | None
    files: tuple[str, ...]
    qualities: dict[str, str]
    bytes: int | None = None
    sha256: str | None = None
    episode_limit: int | None = None

    @property
    def name(self) -> str:
        return f"{self.source}/{self.map_name}"

    def target(self, quality: str) -> PurePosixPath:
        """The converted file, relative to datasets_dir."""
        return PurePosixPath(self.env, f"{self.map_name}_{quality}.h5")


@cache
def catalogue(path: Path = CATALOGUE) -> dict[str, Source]:
    """`SOURCE/MAP` -> `Source`, in the order of the file."""
    sources: dict[str, Source] = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        for map_name in entry["maps"]:
            source = _source(entry, map_name)
            assert source.name not in sources, f"{path}: {source.name} stands twice"
            sources[source.name] = source
    return sources


def _source(entry: dict[str, Any], map_name: str) -> Source:
    def fill(text: str) -> str:
        return text.replace("{map}", map_name)

    return Source(
        source=entry["source"],
        env=entry["env"],
        map_name=map_name,
        address=fill(entry["address"]),
        page=entry["page"],
        archive=fill(entry["archive"]) if "archive" in entry else None,
        files=tuple(entry.get("files", ())),
        qualities={quality: fill(path) for quality, path in entry["qualities"].items()},
        bytes=entry.get("bytes", {}).get(map_name),
        sha256=entry.get("sha256", {}).get(map_name),
        episode_limit=entry.get("limits", {}).get(map_name),
    )


def find_source(name: str, known: Mapping[str, Source] | None = None) -> Source:
    """The entry `SOURCE/MAP`; DatasetError with the nearest names otherwise."""
    known = catalogue() if known is None else known
    if name in known:
        return known[name]
    raise DatasetError(
        f"'{name}': expected SOURCE/MAP, found no such dataset in the catalogue."
        f"{nearest(name, known)} `python src/dataset.py list` shows them all."
    )


# --------------------------------------------------------------------------------------------------
# list


@dataclass(frozen=True)
class Known:
    """One line of `list`. size: bytes here, or of the download; None where it is not known.

    how: the file that is here, or the command that gets it.
    """

    env: str
    map_name: str
    quality: str
    source: str
    size: int | None
    here: bool
    how: str


def known_datasets(datasets_dir: Path) -> list[Known]:
    """What is in `datasets_dir`, what can be made, what can be downloaded; sorted."""
    # Of several ways to the same data the first of the catalogue, and what is here before all.
    lines = [*reversed(known_sources()), *_recipes(), *_here(datasets_dir)]
    known = {(line.env, line.map_name, line.quality): line for line in lines}
    return [known[key] for key in sorted(known)]


def known_sources() -> list[Known]:
    """What `download` knows, one line for each quality, in the catalogue's order."""
    return [
        Known(
            env=source.env,
            map_name=source.map_name,
            quality=quality,
            source=source.source,
            size=source.bytes,
            here=False,
            how=f"python src/dataset.py download {source.name}",
        )
        for source in catalogue().values()
        for quality in source.qualities
    ]


def _recipes() -> list[Known]:
    """What a run makes by itself when it asks for it."""
    from inspo.offline.collect import qualities
    from inspo.offline.game_data import LISTED
    from inspo.utils.paths import POLICIES

    shipped = {(f.parent.parent.name, f.parent.name) for f in POLICIES.glob("*/*/recipes.yaml")}
    command = "python src/main.py --config=bc --env-config={}_offline with map_name={} quality={}"
    return [
        Known(env, name, quality, "made by the first run", None, False,
              command.format(env, name, quality))
        for env, name in sorted(shipped | set(LISTED))
        for quality in qualities(env, name)
    ]  # fmt: skip


def _here(datasets_dir: Path) -> list[Known]:
    """The files `{env}/{map}_{quality}.h5`; names from their metadata, where they can be read."""
    from inspo.offline.formats.canonical import open_source, read_metadata

    lines = []
    for path in sorted(datasets_dir.glob("*/*.h5")):
        env, map_name, quality, source = path.parent.name, path.stem, "", "no metadata"
        try:
            with open_source(path) as opened:
                meta = read_metadata(opened)
            if meta is not None:
                env, map_name, quality, source = meta.env, meta.map_name, meta.quality, meta.source
        except DatasetError:
            source = "damaged: see `validate`"
        size = path.stat().st_size
        lines.append(Known(env, map_name, quality, source, size, True, str(path)))
    return lines


def size_text(size: float | None) -> str:
    """Bytes for people."""
    if size is None:
        return ""
    units = ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def list_text(known: Sequence[Known]) -> str:
    """A table of what is here, then of the rest with the command that gets it."""
    here = [(k.env, k.map_name, k.quality, size_text(k.size), k.how) for k in known if k.here]
    rest = [
        (k.env, k.map_name, k.quality, k.source, size_text(k.size), k.how)
        for k in known
        if not k.here
    ]
    text = "Nothing is here yet."
    if here:
        text = text_table(("env", "map", "quality", "size", "file"), here)
    head = ("env", "map", "quality", "source", "size", "how to get it")
    return f"{text}\n\n{text_table(head, rest)}" if rest else text
