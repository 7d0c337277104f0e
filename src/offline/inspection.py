"""How varied a dataset is, and how far its agents act together: what `dataset.py inspect` shows.

Entropies are in nats and empirical, over all transitions, whatever the state: they say how often
actions and combinations occur, not how random a policy is in one state.

The distance from the product of the agents is the total correlation, the KL divergence of the joint
actions' distribution from the product of each agent's own: 0 where agents act independently. Where
it is large, agents that are improved one by one meet in combinations that the data do not have. On
few samples it is biased upwards; the same number with each agent's actions shuffled on their own
says by how much.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from inspo.envs import conventions
from inspo.offline.duplicates import EqualEpisodes
from inspo.offline.offline_dataset import DatasetMetadata, OfflineDataset, ends_terminated

CELL_BITS = 10  # states are counted in at most 2^10 cells
VISITS = 5  # mean visits of a state from which a number given the state means something


@dataclass(frozen=True)
class Summary:
    """Mean, population deviation and quantiles of a sample of numbers."""

    mean: float
    std: float
    min: float
    q25: float
    median: float
    q75: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> Summary:
        """`values` `[k]`, k >= 1."""
        quantiles = np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0))
        return cls(float(values.mean()), float(values.std()), *(float(q) for q in quantiles))


@dataclass(frozen=True)
class DatasetStatistics:
    """returns: undiscounted, per episode. lengths: transitions. win_rate: None where unknown.

    n_terminated: episodes with a true end; n_cut: neither a true end nor the limit.
    action_frequencies: share of each action among the transitions of each agent, `[n, A]`.
    """

    n_episodes: int
    n_steps: int
    n_terminated: int
    n_cut: int
    returns: Summary
    lengths: Summary
    win_rate: float | None
    action_frequencies: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Numbers, lists and dictionaries alone, for JSON."""
        return {**asdict(self), "action_frequencies": self.action_frequencies.tolist()}


@dataclass(frozen=True)
class Dependence:
    """How far from independent the agents' actions are. In nats; `[n]` and `[n, n]` per agent.

    total_correlation: sum of `agent_entropy` less `joint_entropy`. shuffled: the same with each
    agent's actions shuffled. given_state: the mean within one state, None where states hardly ever
    come twice. mutual_information: of each pair of agents, 0 on the diagonal.
    """

    agent_entropy: np.ndarray
    joint_entropy: float
    total_correlation: float
    shuffled: float
    given_state: float | None
    mutual_information: np.ndarray


@dataclass(frozen=True)
class Coverage:
    """How much of what is possible the transitions hold.

    joint_actions: distinct combinations of actions, of `possible` = A^n. counts: how often each
    occurs, falling, `[joint_actions]`; shuffled_counts: with each agent's actions shuffled.
    states, state_actions: distinct ones, bit for bit; `state_actions` are pairs with the joint
    action. cells, cell_actions: the same with states rounded to cells, the signs of `CELL_BITS`
    random projections of the standardised state. forced: share of an agent's choices with a single
    action available.
    """

    joint_actions: int
    possible: int
    counts: np.ndarray
    shuffled_counts: np.ndarray
    states: int
    state_actions: int
    cells: int
    cell_actions: int
    transitions: int
    forced: float


@dataclass(frozen=True)
class Conventions:
    """By which conventions the episodes were played (`envs.conventions`), agent by agent.

    shares: joint convention -> its share of the episodes, falling. number: how many there are in
    effect, exp of their entropy. total_correlation: nats between the joint conventions and the
    product of the agents' own: 0 where agents choose theirs independently of each other.
    """

    shares: dict[str, float]
    number: float
    total_correlation: float

    @classmethod
    def of(cls, dataset: OfflineDataset) -> Conventions | None:
        """None where none are known."""
        env, map_name = dataset.metadata.env, dataset.metadata.map_name
        found = []
        for start, end in zip(dataset.offsets, dataset.offsets[1:]):
            state = dataset.arrays["state"][start:end][None]
            one = conventions.labels(env, map_name, state, np.array([end - start - 1]))
            if one is None:
                return None
            found.append(one[0])
        labels = np.array(found)
        rows, counts = np.unique(labels, axis=0, return_counts=True)
        names = [" ".join(conventions.name_of(env, int(x)) for x in row) for row in rows]
        order = np.argsort(-counts, kind="stable")
        joint = entropy(numbered(labels))
        own = sum(entropy(column) for column in labels.T)
        shares = {names[k]: float(counts[k] / len(labels)) for k in order}
        return cls(shares, float(np.exp(joint)), max(own - joint, 0.0))


@dataclass(frozen=True)
class Inspection:
    """All that `inspect` shows. returns, lengths `[E]`; won `[E]` or None."""

    metadata: DatasetMetadata
    statistics: DatasetStatistics
    dependence: Dependence
    coverage: Coverage
    equal: EqualEpisodes
    conventions: Conventions | None
    returns: np.ndarray
    lengths: np.ndarray
    won: np.ndarray | None

    def as_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists and dictionaries alone, for JSON; no lists of episodes."""
        coverage = asdict(self.coverage)
        del coverage["counts"], coverage["shuffled_counts"]
        return {
            "metadata": {**asdict(self.metadata), "notes": list(self.metadata.notes)},
            **self.statistics.as_dict(),
            "win": None if self.won is None else asdict(Summary.of(self.won)),
            "dependence": {
                key: value.tolist() if isinstance(value, np.ndarray) else value
                for key, value in asdict(self.dependence).items()
            },
            "coverage": coverage,
            "conventions": None if self.conventions is None else asdict(self.conventions),
            "equal_episodes": self.equal.as_dict(),
        }


def inspect(dataset: OfflineDataset) -> Inspection:
    """The numbers of a valid dataset. The same data give the same numbers."""
    rows = np.flatnonzero(dataset.is_transition())
    actions = np.asarray(dataset.arrays["actions"][rows, :, 0])
    joint, shuffled = numbered(actions), numbered(shuffle_each(actions))
    states, cells = _state_codes(dataset)
    states, cells = states[rows], cells[rows]
    counts = np.sort(np.bincount(joint))[::-1]
    return Inspection(
        metadata=dataset.metadata,
        statistics=compute_statistics(dataset),
        dependence=_dependence(actions, joint, shuffled, states),
        coverage=Coverage(
            joint_actions=len(counts),
            possible=dataset.metadata.n_actions**dataset.metadata.n_agents,
            counts=counts,
            shuffled_counts=np.sort(np.bincount(shuffled))[::-1],
            states=len(np.unique(states)),
            state_actions=n_pairs(states, joint),
            cells=len(np.unique(cells)),
            cell_actions=n_pairs(cells, joint),
            transitions=len(rows),
            forced=_forced(dataset, rows),
        ),
        equal=dataset.equal,
        conventions=Conventions.of(dataset),
        returns=dataset.episode_returns(),
        lengths=dataset.lengths,
        won=dataset.battle_won,
    )


def action_frequencies(dataset: OfflineDataset) -> np.ndarray:
    """Share of each action among the transitions of each agent: float64 `[n, A]`."""
    n_agents, n_actions = dataset.metadata.n_agents, dataset.metadata.n_actions
    actions = dataset.arrays["actions"][dataset.is_transition(), :, 0]
    cells = actions + n_actions * np.arange(n_agents)
    counts = np.bincount(cells.ravel(), minlength=n_agents * n_actions)
    return counts.reshape(n_agents, n_actions) / max(len(actions), 1)


def compute_statistics(dataset: OfflineDataset) -> DatasetStatistics:
    """The statistics of a valid dataset with at least one episode."""
    ended = ends_terminated(dataset.arrays["terminated"], dataset.lengths)
    short = dataset.lengths < dataset.metadata.episode_limit
    won = dataset.battle_won
    return DatasetStatistics(
        n_episodes=len(dataset),
        n_steps=int(dataset.lengths.sum()),
        n_terminated=int(ended.sum()),
        n_cut=int((short & ~ended).sum()),
        returns=Summary.of(dataset.episode_returns()),
        lengths=Summary.of(dataset.lengths),
        win_rate=None if won is None else float(won.mean()),
        action_frequencies=action_frequencies(dataset),
    )


# ------------------------------------------------------------------------------ entropies


def entropy(codes: np.ndarray) -> float:
    """Empirical entropy of labels `[k]`, in nats."""
    share = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(-(share * np.log(share)).sum())


def numbered(rows: np.ndarray) -> np.ndarray:
    """Equal rows of `[k, n]` whole numbers get equal numbers from 0 on: int64 `[k]`."""
    code = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        values = np.unique(column, return_inverse=True)[1]
        # Numbered anew after each column, so that nothing overflows however many agents there are.
        code = np.unique(code * (values.max() + 1) + values, return_inverse=True)[1]
    return code


def paired(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The number of each pair of labels: int64 `[k]`."""
    return numbered(np.stack([first, second], axis=1))


def n_pairs(first: np.ndarray, second: np.ndarray) -> int:
    """Distinct pairs of labels."""
    return int(paired(first, second).max()) + 1


def shuffle_each(actions: np.ndarray, seed: int = 0) -> np.ndarray:
    """`[k, n]` with each column permuted on its own: the same agents, independent of each other."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(column) for column in actions.T], axis=1)


def _dependence(
    actions: np.ndarray, joint: np.ndarray, shuffled: np.ndarray, states: np.ndarray
) -> Dependence:
    n = actions.shape[1]
    own = np.array([entropy(column) for column in actions.T])
    together = entropy(joint)
    mutual = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            both = entropy(paired(actions[:, i], actions[:, j]))
            mutual[i, j] = mutual[j, i] = max(own[i] + own[j] - both, 0.0)
    return Dependence(
        agent_entropy=own,
        joint_entropy=together,
        total_correlation=max(own.sum() - together, 0.0),
        shuffled=max(own.sum() - entropy(shuffled), 0.0),
        given_state=_given_state(actions, joint, states),
        mutual_information=mutual,
    )


def _given_state(actions: np.ndarray, joint: np.ndarray, states: np.ndarray) -> float | None:
    """sum_i H(a_i | s) - H(a | s), where H(x | s) = H(x, s) - H(s)."""
    if len(states) < VISITS * (states.max() + 1):
        return None
    of_state = entropy(states)
    own = sum(entropy(paired(column, states)) - of_state for column in actions.T)
    return max(own - (entropy(paired(joint, states)) - of_state), 0.0)


# ------------------------------------------------------------------------------ states


def _state_codes(dataset: OfflineDataset) -> tuple[np.ndarray, np.ndarray]:
    """For each row the number of its state and of its cell: int64 `[rows]` each."""
    state = dataset.arrays["state"]
    parts = [state[dataset.offsets[a] : dataset.offsets[b]] for a, b in dataset.blocks()]
    total = sum(part.sum(axis=0, dtype=np.float64) for part in parts)
    mean = total / len(state)
    square = sum(((part - mean) ** 2).sum(axis=0) for part in parts)
    scale = 1 / np.sqrt(np.maximum(square / len(state), 1e-12))
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(state.shape[1], CELL_BITS)) * scale[:, None]
    seen: dict[bytes, int] = {}
    numbers, cells = [], []
    for part in parts:
        for row in np.ascontiguousarray(part + np.float32(0)):  # -0.0 becomes 0.0
            numbers.append(seen.setdefault(blake2b(row, digest_size=16).digest(), len(seen)))
        cells.append(((part - mean) @ directions > 0) @ (1 << np.arange(CELL_BITS)))
    return np.array(numbers), np.concatenate(cells)


def _forced(dataset: OfflineDataset, rows: np.ndarray) -> float:
    """Share of the agents' choices in these rows that had a single action available."""
    available = dataset.arrays["avail_actions"]
    parts = np.array_split(rows, max(len(rows) >> 16, 1))
    single = sum(int(((available[part] != 0).sum(axis=-1) == 1).sum()) for part in parts)
    return single / (len(rows) * dataset.metadata.n_agents)


# ------------------------------------------------------------------------------ in words


def to_text(inspection: Inspection) -> str:
    """What `inspect` prints."""
    meta, stats = inspection.metadata, inspection.statistics
    dep, cov = inspection.dependence, inspection.coverage
    names = ("mean", "std", "min", "q25", "median", "q75", "max")
    lines = [
        f"{meta.env} {meta.map_name} {meta.quality} ({meta.simulator})",
        f"source        {meta.source}",
        *(f"note          {note}" for note in meta.notes),
        f"hash          {meta.content_hash}",
        f"shapes        {meta.n_agents} agents, {meta.n_actions} actions, observation "
        f"{meta.obs_shape}, state {meta.state_shape}, limit {meta.episode_limit}",
        f"episodes      {stats.n_episodes:,}, of which {stats.n_terminated:,} end, "
        f"{stats.n_cut:,} are cut, the rest reach the limit",
        f"steps         {stats.n_steps:,}",
        f"equal         {inspection.equal}",
        "",
        " " * 12 + "".join(f"{name:>10}" for name in names),
    ]
    rows = {"return": stats.returns, "length": stats.lengths}
    for name, summary in rows.items():
        lines.append(f"{name:<12}" + "".join(f"{getattr(summary, k):>10.3f}" for k in names))
    if inspection.won is not None:
        won = inspection.won.mean()
        lines.append(f"{'won':<12}{won:>10.3f}{np.sqrt(won * (1 - won)):>10.3f}")
    actions = range(meta.n_actions)
    lines += ["", "share of each action", " " * 12 + "".join(f"{a:>7}" for a in actions)]
    for i, shares in enumerate(stats.action_frequencies):
        lines.append(f"{f'agent {i}':<12}" + "".join(f"{share:>7.3f}" for share in shares))
    given = "" if dep.given_state is None else f"; given the state {dep.given_state:.3f}"
    own = ", ".join(f"{h:.3f}" for h in dep.agent_entropy)
    lines += [
        "",
        f"joint actions       {cov.joint_actions:,} of {cov.possible:,} "
        f"({cov.joint_actions / cov.possible:.2%}); the most frequent is "
        f"{cov.counts[0] / cov.transitions:.2%} of all",
        f"entropy             {own} for the agents (at most {np.log(meta.n_actions):.3f}), "
        f"{dep.joint_entropy:.3f} jointly; nats, whatever the state",
        f"total correlation   {dep.total_correlation:.3f} nats from the product of the agents "
        f"({dep.shuffled:.3f} if they were independent){given}",
        f"states              {cov.states:,} distinct in {cov.transitions:,} transitions, "
        f"{cov.state_actions:,} distinct with their joint actions",
        f"state cells         {cov.cells:,} of {2**CELL_BITS:,} visited, "
        f"{cov.cell_actions / cov.cells:.1f} joint actions in each",
        f"forced              {cov.forced:.1%} of all choices had a single action available",
    ]
    if (played := inspection.conventions) is not None:
        most = ", ".join(f"{name}: {share:.1%}" for name, share in [*played.shares.items()][:6])
        lines.append(
            f"conventions         {most}; in effect {played.number:.2f}, "
            f"{played.total_correlation:.3f} nats from the product of the agents"
        )
    return "\n".join(lines)
