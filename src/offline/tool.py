"""What the commands of `dataset.py` do: find, convert, mix, choose and split datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from inspo.offline.dataset import (
    AGREE,
    DatasetMetadata,
    OfflineDataset,
    common_env_args,
    differences,
)
from inspo.offline.formats import alberdice, canonical, load_dataset, vault
from inspo.offline.formats.folders import refuse_existing
from inspo.utils.errors import DatasetError, UserError, nearest
from inspo.utils.seeding import spawn_seeds

WRITERS = {
    canonical.NAME: canonical.write_dataset,
    alberdice.NAME: alberdice.write,
    vault.NAME: vault.write,
}
BLOCK = 64  # episodes that are padded at a time


# --------------------------------------------------------------------------------------------------
# convert


def target_format(path: Path, to: str | None = None) -> str:
    """The format to write: `to`, or what the name says (see docs/datasets.md)."""
    if to is not None:
        if to not in WRITERS:
            raise UserError(
                f"--to {to}: unknown format.{nearest(to, WRITERS)} Known: {', '.join(WRITERS)}"
            )
        return to
    if path.suffix in (".h5", ".hdf5"):
        return canonical.NAME
    if ".vlt" in (path.suffix, path.parent.suffix):
        return vault.NAME
    if not path.suffix:
        return alberdice.NAME
    raise UserError(
        f"{path}: the name does not say which format to write. Use .h5 (canonical, CFCQL), .vlt or "
        f"NAME.vlt/NAME (vault), no suffix (AlberDICE's folder), or --to {'|'.join(WRITERS)}."
    )


def convert(
    source: Path,
    target: Path,
    *,
    to: str | None = None,
    force: bool = False,
    episode_limit: int | None = None,
    **names: str | None,
) -> OfflineDataset:
    """Read any format, write any format that can be written. Returns what was read.

    episode_limit: longer episodes are cut there; of a foreign vault it becomes the limit. names:
    env, map_name, quality, where the source is silent.
    """
    name = target_format(target, to)
    _refuse(target, force, source)
    if episode_limit is not None and episode_limit < 1:
        raise UserError(f"--episode-limit {episode_limit}: expected at least 1.")
    dataset = load_dataset(source, in_memory="auto", episode_limit=episode_limit, **names)
    WRITERS[name](target, dataset, overwrite=force)
    return dataset


def left_out(name: str) -> str | None:
    """What a format cannot hold, in words; None if it holds all."""
    return "the observation after each last transition" if name == vault.NAME else None


def _refuse(target: Path, force: bool, *sources: Path) -> None:
    """Before anything is read: a target that exists, or that is one of the sources."""
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise DatasetError(f"{target}: is what is read. Choose another name for the result.")
    if target.is_dir():
        refuse_existing(target, force)
    elif target.exists() and not force:
        raise DatasetError(
            f"{target}: exists already and is not overwritten. Choose another name, remove it, or "
            "use --force."
        )


# --------------------------------------------------------------------------------------------------
# Episodes of one or more datasets into one canonical file


@dataclass(frozen=True)
class Piece:
    """The episodes `indices` of a dataset, in that order."""

    dataset: OfflineDataset
    indices: np.ndarray


def write_pieces(
    path: Path, pieces: Sequence[Piece], *, quality: str, source: str, force: bool = False
) -> DatasetMetadata:
    """The episodes of all pieces in one canonical file; no more than some are in memory."""
    if path.suffix not in (".h5", ".hdf5"):
        raise UserError(f"{path}: expected a name that ends with .h5; use convert for others.")
    first = pieces[0].dataset.metadata
    notes = dict.fromkeys(note for piece in pieces for note in piece.dataset.metadata.notes)
    metadata = replace(
        first,
        quality=quality,
        source=source,
        notes=tuple(notes),
        env_args=common_env_args([piece.dataset.metadata for piece in pieces]),
        created_by="",
    )
    known = all(piece.dataset.battle_won is not None for piece in pieces)
    cut = any(piece.dataset.metadata.n_cut for piece in pieces)
    with canonical.CanonicalWriter(path, metadata, overwrite=force, allow_cut=cut) as writer:
        for piece in pieces:
            for first_index in range(0, len(piece.indices), BLOCK):
                chosen = piece.indices[first_index : first_index + BLOCK]
                won = piece.dataset.battle_won[chosen] if known else None
                writer.append(piece.dataset.episodes(chosen), won)
    return writer.metadata


# --------------------------------------------------------------------------------------------------
# mix


def parse_part(text: str) -> tuple[Path, float | int]:
    """`PATH:0.5` (a share) or `PATH:500` (a number of episodes)."""
    path, _, amount = text.rpartition(":")
    try:
        value = float(amount) if "." in amount else int(amount)
    except ValueError:
        value = -1
    if not path or not value > 0:
        raise UserError(
            f"'{text}': expected PATH:SHARE, as in medium.h5:0.5, or PATH:EPISODES, as in "
            "medium.h5:500."
        )
    return Path(path), value


def episode_counts(
    amounts: Sequence[float | int], available: Sequence[int], total: int | None = None
) -> list[int]:
    """How many episodes to take of each part.

    amounts: numbers of episodes, or shares that add up to 1. Shares are of `total` episodes, or of
    as many as the parts allow; what rounding leaves over goes to the largest remainders.
    """
    shares = [isinstance(amount, float) for amount in amounts]
    if any(shares) != all(shares):
        raise UserError("Give shares (0.5) for all parts, or numbers of episodes (500) for all.")
    if not all(shares):
        if total is not None and total != sum(amounts):
            raise UserError(f"--episodes {total}, but the parts add up to {sum(amounts)}.")
        counts = [int(amount) for amount in amounts]
    else:
        if abs(sum(amounts) - 1) > 1e-6:
            raise UserError(f"The shares add up to {sum(amounts):g}, expected 1.")
        if total is None:
            total = int(min(have / share for have, share in zip(available, amounts)) + 1e-9)
        exact = [total * share for share in amounts]
        counts = [int(value + 1e-9) for value in exact]
        order = sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])
        for k in order[: total - sum(counts)]:
            counts[k] += 1
    for number, (count, have) in enumerate(zip(counts, available), 1):
        if count > have:
            raise UserError(f"Part {number} has {have} episodes, of which {count} were asked for.")
    return counts


def mix(
    parts: Sequence[str],
    target: Path,
    *,
    total: int | None = None,
    seed: int = 0,
    quality: str = "mixed",
    force: bool = False,
) -> DatasetMetadata:
    """Episodes of several datasets, drawn without replacement, in one canonical file."""
    parsed = [parse_part(part) for part in parts]
    paths = [path for path, _ in parsed]
    _refuse(target, force, *paths)
    datasets = [load_dataset(path, in_memory="auto") for path in paths]
    for path, dataset in zip(paths[1:], datasets[1:]):
        found = differences(datasets[0].metadata, dataset.metadata, AGREE)
        if found:
            raise DatasetError(
                f"{path}: does not fit {paths[0]}: {'; '.join(found)}. Mix datasets of one "
                "environment and map only."
            )
    counts = episode_counts([amount for _, amount in parsed], [len(d) for d in datasets], total)
    pieces, sources = [], []
    for number, (path, dataset, count) in enumerate(zip(paths, datasets, counts)):
        rng = np.random.default_rng(spawn_seeds(seed, f"mix {number}", 1)[0])
        pieces.append(Piece(dataset, np.sort(rng.choice(len(dataset), count, replace=False))))
        sources.append(f"{count} of {len(dataset)} episodes of {path.name} (seed {seed}): "
                       f"{dataset.metadata.source}")  # fmt: skip
    kept = [piece for piece in pieces if len(piece.indices)]
    if not kept:
        raise UserError("No episode is left to mix: ask for more of them.")
    return write_pieces(target, kept, quality=quality, source="; ".join(sources), force=force)


# --------------------------------------------------------------------------------------------------
# subsample


@dataclass(frozen=True)
class Choice:
    """Which episodes to keep; None everywhere keeps all. Bounds are inclusive.

    returns: lowest and highest return. quantiles: the same as shares of the episodes in order of
    their returns, (0, 0.25) for the worst quarter. won: the victories, or the defeats. episodes: so
    many of what the rest leaves, drawn without replacement.
    """

    episodes: int | None = None
    returns: tuple[float, float] | None = None
    quantiles: tuple[float, float] | None = None
    won: bool | None = None
    seed: int = 0

    def __str__(self) -> str:
        words = []
        if self.returns:
            words.append(f"returns {self.returns[0]:g} to {self.returns[1]:g}")
        if self.quantiles:
            words.append(f"return quantiles {self.quantiles[0]:g} to {self.quantiles[1]:g}")
        if self.won is not None:
            words.append("won" if self.won else "not won")
        if self.episodes is not None:
            words.append(f"{self.episodes} drawn with seed {self.seed}")
        return ", ".join(words) or "all"


def choose(dataset: OfflineDataset, choice: Choice) -> np.ndarray:
    """The episodes that fit, in the order of the dataset: int64 `[k]`, k > 0."""
    returns = dataset.episode_returns()
    fits = np.ones(len(dataset), dtype=bool)
    if choice.returns:
        fits &= (returns >= choice.returns[0]) & (returns <= choice.returns[1])
    if choice.quantiles:
        low, high = choice.quantiles
        if not 0 <= low < high <= 1:
            raise UserError(f"--quantiles {low:g} {high:g}: expected 0 <= LOW < HIGH <= 1.")
        # By rank, so that equal returns still give the share that was asked for.
        rank = np.empty(len(returns), dtype=np.int64)
        rank[np.argsort(returns, kind="stable")] = np.arange(len(returns))
        first, end = round(low * len(returns)), round(high * len(returns))
        fits &= (rank >= first) & (rank < end)
    if choice.won is not None:
        if dataset.battle_won is None:
            raise UserError("--won, --lost: the dataset does not say who won.")
        fits &= dataset.battle_won.astype(bool) == choice.won
    found = np.flatnonzero(fits)
    if not len(found):
        raise UserError(
            f"No episode fits ({choice}). The returns go from {returns.min():g} to "
            f"{returns.max():g}; `inspect` shows how they are spread."
        )
    if choice.episodes is None:
        return found
    if not 0 < choice.episodes <= len(found):
        raise UserError(f"--episodes {choice.episodes}: expected 1 to {len(found)}, which fit.")
    rng = np.random.default_rng(spawn_seeds(choice.seed, "subsample", 1)[0])
    return np.sort(rng.choice(found, choice.episodes, replace=False))


def subsample(
    source: Path,
    target: Path,
    choice: Choice,
    *,
    quality: str | None = None,
    force: bool = False,
) -> DatasetMetadata:
    """The chosen episodes in a canonical file."""
    _refuse(target, force, source)
    dataset = load_dataset(source, in_memory="auto")
    indices = choose(dataset, choice)
    return write_pieces(
        target,
        [Piece(dataset, indices)],
        quality=quality or dataset.metadata.quality,
        source=f"{len(indices)} of {len(dataset)} episodes ({choice}) of {source.name}: "
        f"{dataset.metadata.source}",
        force=force,
    )


# --------------------------------------------------------------------------------------------------
# split


def split(
    source: Path,
    training: Path,
    held_out: Path,
    *,
    share: float = 0.1,
    seed: int = 0,
    force: bool = False,
) -> tuple[DatasetMetadata, DatasetMetadata]:
    """Two canonical files that have no episode in common and all of them together.

    share: of the held-out episodes, rounded, at least 1 and not all. Both files or none.
    """
    if training.absolute() == held_out.absolute():
        raise UserError(f"{training}: expected two names, one for each part.")
    for target in (training, held_out):
        _refuse(target, force, source)
    dataset = load_dataset(source, in_memory="auto")
    if not 0 < share < 1 or len(dataset) < 2:
        raise UserError(
            f"--held-out {share:g} of {len(dataset)} episodes: expected a share between 0 and 1, "
            "of at least 2 episodes."
        )
    count = min(max(round(share * len(dataset)), 1), len(dataset) - 1)
    rng = np.random.default_rng(spawn_seeds(seed, "split", 1)[0])
    order = rng.permutation(len(dataset))
    facts, existed = [], training.exists()
    try:
        for path, indices, word in (
            (training, np.sort(order[count:]), "training"),
            (held_out, np.sort(order[:count]), "held-out"),
        ):
            source_text = (
                f"{word} part, {len(indices)} of {len(dataset)} episodes (seed {seed}), of "
                f"{source.name}: {dataset.metadata.source}"
            )
            quality = dataset.metadata.quality
            pieces = [Piece(dataset, indices)]
            facts.append(
                write_pieces(path, pieces, quality=quality, source=source_text, force=force)
            )
    except BaseException:
        if len(facts) == 1 and not existed:
            training.unlink(missing_ok=True)
        raise
    return facts[0], facts[1]


# --------------------------------------------------------------------------------------------------
# list


@dataclass(frozen=True)
class Known:
    """One line of `list`. size: bytes here, or of the download; None where it is not known."""

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
    found = {(k.env, k.map_name, k.quality): k for k in reversed(_recipes() + _downloads())}
    found |= {(k.env, k.map_name, k.quality): k for k in _here(datasets_dir)}
    return [found[key] for key in sorted(found)]


def _here(datasets_dir: Path) -> list[Known]:
    """The files `{env}/{map}_{quality}.h5`; names from their metadata, where they can be read."""
    lines = []
    for path in sorted(datasets_dir.glob("*/*.h5")):
        env, map_name, quality, source = path.parent.name, path.stem, "", "no metadata"
        try:
            with canonical.open_source(path) as opened:
                meta = canonical.read_metadata(opened)
            if meta is not None:
                env, map_name, quality, source = meta.env, meta.map_name, meta.quality, meta.source
        except DatasetError:
            source = "damaged: see `validate`"
        size = path.stat().st_size
        lines.append(Known(env, map_name, quality, source, size, True, str(path)))
    return lines


def _recipes() -> list[Known]:
    """What a run makes by itself when it asks for it."""
    from inspo.offline.collect import POLICIES, qualities
    from inspo.offline.games import QUALITIES

    maps = {(f.parent.parent.name, f.parent.name) for f in POLICIES.glob("*/*/recipes.yaml")}
    lines = []
    for env, map_name in sorted(maps | set(QUALITIES)):
        for quality in qualities(env, map_name):
            how = (
                f"python src/main.py --config=bc --env-config={env}_offline with "
                f"map_name={map_name} quality={quality}"
            )
            lines.append(Known(env, map_name, quality, "made by the first run", None, False, how))
    return lines


def _downloads() -> list[Known]:
    """What `download` knows."""
    from inspo.offline.sources import known_sources

    return [
        Known(
            known.env,
            known.map_name,
            known.quality,
            known.source,
            known.bytes,
            False,
            f"python src/dataset.py download {known.name}",
        )
        for known in known_sources()
    ]


def size_text(size: int | None) -> str:
    """Bytes for people."""
    if size is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def list_text(known: Sequence[Known]) -> str:
    """A table of what is here, then of the rest with the command that gets it."""
    here = [k for k in known if k.here]
    rest = [k for k in known if not k.here]
    rows = [("env", "map", "quality", "size", "file")]
    rows += [(k.env, k.map_name, k.quality, size_text(k.size), k.how) for k in here]
    text = _table(rows) if here else "Nothing is here yet."
    if rest:
        more = [("env", "map", "quality", "source", "size", "how to get it")]
        more += [(k.env, k.map_name, k.quality, k.source, size_text(k.size), k.how) for k in rest]
        text += "\n\n" + _table(more)
    return text


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )
