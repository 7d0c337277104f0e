"""What the commands of `dataset.py` do with files: convert, mix, choose, split and dedupe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inspo.offline.duplicates import EqualEpisodes, members
from inspo.offline.formats import alberdice, canonical, folders, load_dataset, vault
from inspo.offline.formats.canonical_writer import (
    CanonicalWriter,
    append_episodes,
    write_dataset,
)
from inspo.offline.formats.common import EXISTS
from inspo.offline.offline_dataset import DatasetMetadata, OfflineDataset
from inspo.offline.validation import differing_settings
from inspo.utils.errors import DatasetError, UserError, nearest
from inspo.utils.seeding import spawn_seeds

WRITERS = {
    canonical.NAME: write_dataset,
    alberdice.NAME: alberdice.write,
    vault.NAME: vault.write,
}
LEFT_OUT = {vault.NAME: "the observation after each last transition"}
"""What a format cannot hold."""

AGREE = (
    *("env", "map_name", "n_agents", "n_actions", "state_shape", "obs_shape", "episode_limit"),
    "simulator",
)
"""What datasets must have in common to be mixed."""


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
    env: str | None = None,
    map_name: str | None = None,
    quality: str | None = None,
) -> OfflineDataset:
    """Read any format, write any format that can be written. Returns what was read.

    episode_limit: longer episodes are cut there; of a foreign vault it becomes the limit. env,
    map_name, quality: where the source is silent.
    """
    name = target_format(target, to)
    if episode_limit is not None and episode_limit < 1:
        raise UserError(f"--episode-limit {episode_limit}: expected at least 1.")
    _refuse(target, force, source, file=name == canonical.NAME)
    dataset = load_dataset(
        source,
        env=env,
        map_name=map_name,
        quality=quality,
        episode_limit=episode_limit,
        in_memory="auto",
        cast=True,
    )
    WRITERS[name](target, dataset, overwrite=force)
    return dataset


def _refuse(target: Path, force: bool, *sources: Path, file: bool = True) -> None:
    """Before anything is read: a target that may not be written, or that is one of the sources."""
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise DatasetError(f"{target}: is what is read. Choose another name for the result.")
    if target.exists() and not force:
        raise DatasetError(f"{target}: {EXISTS[:-1]}, or use --force.")
    (canonical.refuse_existing if file else folders.refuse_existing)(target, force)


# --------------------------------------------------------------------------------------------------
# Episodes of one or more datasets into one canonical file

Piece = tuple[OfflineDataset, np.ndarray, str]
"""A dataset, which of its episodes in which order, and in words which these are."""


def write_pieces(
    path: Path, pieces: Sequence[Piece], quality: str | None = None, force: bool = False
) -> DatasetMetadata:
    """The episodes of all pieces in one canonical file; no more than some are in memory.

    quality: by default the first dataset's.
    """
    if path.suffix not in (".h5", ".hdf5"):
        raise UserError(f"{path}: expected a name that ends with .h5; use convert for others.")
    facts = [dataset.metadata for dataset, *_ in pieces]
    settings = {part.env_args for part in facts}
    metadata = replace(
        facts[0],
        quality=quality or facts[0].quality,
        source="; ".join(f"{origin}: {dataset.metadata.source}" for dataset, _, origin in pieces),
        notes=tuple(dict.fromkeys(note for part in facts for note in part.notes)),
        env_args=settings.pop() if len(settings) == 1 else None,  # if they agree, or are known
        created_by="",
    )
    won = all(dataset.battle_won is not None for dataset, *_ in pieces)
    cut = any(part.n_cut for part in facts)
    with CanonicalWriter(path, metadata, overwrite=force, allow_cut=cut) as writer:
        for dataset, indices, _ in pieces:
            append_episodes(writer, dataset, indices, won)
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
        both = [(name, datasets[0].metadata, dataset.metadata) for name in AGREE]
        differing = [
            f"{name} {getattr(a, name)!r} and {getattr(b, name)!r}"
            for name, a, b in both
            if getattr(a, name) != getattr(b, name)
        ]
        _, first, other = both[0]
        differing += differing_settings(first, json.loads(other.env_args or "{}"), str(paths[0]))
        if differing:
            raise DatasetError(
                f"{path}: does not fit {paths[0]}: {'; '.join(differing)}. Mix datasets of one "
                "environment and map only."
            )
    counts = episode_counts([amount for _, amount in parsed], [len(d) for d in datasets], total)
    pieces = []
    for number, (path, dataset, count) in enumerate(zip(paths, datasets, counts)):
        rng = np.random.default_rng(spawn_seeds(seed, f"mix {number}", 1)[0])
        drawn = np.sort(rng.choice(len(dataset), count, replace=False))
        origin = f"{count} of {len(dataset)} episodes of {path.name} (seed {seed})"
        pieces += [(dataset, drawn, origin)] if count else []
    if not pieces:
        raise UserError("No episode is left to mix: ask for more of them.")
    return write_pieces(target, pieces, quality, force)


# --------------------------------------------------------------------------------------------------
# subsample, split, dedupe


@dataclass(frozen=True)
class Choice:
    """Which episodes to keep; None everywhere keeps all. Bounds are inclusive.

    returns: lowest and highest return. quantiles: the same as shares of the episodes in order of
    their returns, (0, 0.25) for the worst quarter. won: the victories, or the defeats. episodes: so
    many of what the rest leaves, drawn without replacement, each with its copies.
    """

    episodes: int | None = None
    returns: tuple[float, float] | None = None
    quantiles: tuple[float, float] | None = None
    won: bool | None = None
    seed: int = 0

    def __str__(self) -> str:
        parts = []
        if self.returns:
            parts.append(f"returns {self.returns[0]:g} to {self.returns[1]:g}")
        if self.quantiles:
            parts.append(f"return quantiles {self.quantiles[0]:g} to {self.quantiles[1]:g}")
        if self.won is not None:
            parts.append("won" if self.won else "not won")
        if self.episodes is not None:
            parts.append(f"{self.episodes} drawn with seed {self.seed}")
        return ", ".join(parts) or "all"


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
    chosen = np.flatnonzero(fits)
    if not len(chosen):
        raise UserError(
            f"No episode fits ({choice}). The returns go from {returns.min():g} to "
            f"{returns.max():g}; `inspect` shows how they are spread."
        )
    if choice.episodes is None:
        return chosen
    if not 0 < choice.episodes <= len(chosen):
        raise UserError(f"--episodes {choice.episodes}: expected 1 to {len(chosen)}, which fit.")
    rng = np.random.default_rng(spawn_seeds(choice.seed, "subsample", 1)[0])
    originals = dataset.equal.originals[chosen]
    distinct = np.unique(originals)
    drawn = rng.choice(distinct, min(choice.episodes, len(distinct)), replace=False)
    return np.sort(chosen[members(originals, drawn)[: choice.episodes]])


def keep_episodes(
    dataset: OfflineDataset, keep: str, share: float, log: Callable[[str], None] = lambda text: None
) -> OfflineDataset:
    """The episodes that a run learns from, as its keys dataset.keep and dataset.keep_share say.

    keep: all; won: the victories; best: this share of the episodes, those of largest return.
    DatasetError where it is not known who won, or nobody did.
    """
    if keep == "all":
        return dataset
    if keep == "won":
        if dataset.battle_won is None:
            raise DatasetError(
                "dataset.keep=won: the data do not say which episodes were won. Take the best by "
                "return, dataset.keep=best"
            )
        if not dataset.battle_won.any():
            raise DatasetError("dataset.keep=won: no episode of the data was won")
    won = Choice(won=True)
    chosen = choose(dataset, won if keep == "won" else Choice(quantiles=(1 - share, 1.0)))
    kept = dataset.select(chosen)
    log(f"{len(kept)} of {len(dataset)} episodes are learnt from (dataset.keep={keep})")
    return kept


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
    origin = f"{len(indices)} of {len(dataset)} episodes ({choice}) of {source.name}"
    return write_pieces(target, [(dataset, indices, origin)], quality, force)


def split(
    source: Path,
    training: Path,
    held_out: Path,
    *,
    share: float = 0.1,
    seed: int = 0,
    force: bool = False,
) -> list[DatasetMetadata]:
    """Two canonical files that have no episode in common and all of them together.

    share: of the held-out episodes, rounded, at least 1 and not all; copies stay together, and
    count as one. Both files or none.
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
    originals = dataset.equal.originals
    distinct = np.unique(originals)
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    rng = np.random.default_rng(spawn_seeds(seed, "split", 1)[0])
    order = rng.permutation(distinct)
    existed = training.exists()
    facts: list[DatasetMetadata] = []
    try:
        for path, indices, name in (
            (training, np.sort(members(originals, order[count:])), "training"),
            (held_out, np.sort(members(originals, order[:count])), "held-out"),
        ):
            origin = (
                f"{name} part, {len(indices)} of {len(dataset)} episodes (seed {seed}), of "
                f"{source.name}"
            )
            facts.append(write_pieces(path, [(dataset, indices, origin)], force=force))
    except BaseException:
        if len(facts) == 1 and not existed:
            training.unlink(missing_ok=True)
        raise
    return facts


def dedupe(
    source: Path, target: Path, *, force: bool = False
) -> tuple[DatasetMetadata, EqualEpisodes]:
    """A canonical file of the first of all episodes that are copies of one. Returns what it holds
    and which episodes of the source are equal."""
    _refuse(target, force, source)
    dataset = load_dataset(source, in_memory="auto")
    kept = np.unique(dataset.equal.originals)
    origin = f"{dataset.equal.n_copies} copies of other episodes left out of {source.name}"
    return write_pieces(target, [(dataset, kept, origin)], force=force), dataset.equal
