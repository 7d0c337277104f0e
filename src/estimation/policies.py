"""A saved policy -> what it would do in every logged step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.controllers.basic_controller import BasicMAC
from inspo.estimation.logged import Logged
from inspo.offline.collect import acting_of, read_policy
from inspo.offline.offline_dataset import DatasetMetadata
from inspo.utils.checkpoints import MANIFEST, find_checkpoint, load_checkpoint, put_back
from inspo.utils.errors import CheckpointError, named
from inspo.utils.rl_utils import masked_log_softmax
from inspo.utils.settings import Settings

BLOCK = 128  # episodes whose steps are computed at once
WAYS = ("run", "greedy", "sampled")


@dataclass(frozen=True)
class Policy:
    """A policy as it would be played.

    Attributes:
        name: for tables. folder: where its weights lie. step: its step of training.
        algorithm: what trained it. seed: of its training, if that is known.
        greedy: plays its most probable action (sampled: draws it); epsilon: share of random ones.
        settings: the configuration of its run, as far as acting needs it.
    """

    name: str
    folder: Path
    step: int
    algorithm: str
    seed: int | None
    greedy: bool
    epsilon: float
    settings: Settings
    mac: BasicMAC

    @property
    def way(self) -> str:
        """How it is played, in words."""
        way = "greedy" if self.greedy else "sampled"
        return f"{way}, epsilon {self.epsilon:g}" if self.epsilon else way


def load_policy(
    path: str | Path, facts: DatasetMetadata, way: str = "run", load_step: int = 0, name: str = ""
) -> Policy:
    """The policy of a run's model folder, of one of its steps, or of a shipped one (policy.json).

    way: `greedy`, `sampled`, or `run`: as its run's own tests play it. A policy of action values
    (CFCQL, OMAR, MACQL, QMIX) is greedy whatever is asked. CheckpointError if it is of another
    environment, map or shape than the data.
    """
    folder = Path(path)
    if (folder / "policy.json").is_file():
        stored, weights = read_policy(folder)
        config: dict[str, Any] = acting_of(stored["settings"])
        config |= {"test_greedy": True, "test_epsilon": 0.0}
        step, algorithm, seed = int(stored["t_env"]), str(stored["algorithm"]), stored["seed"]
    else:
        saved = load_checkpoint(folder, load_step, only=["agent.th"])
        folder, step, stored, weights = (
            saved.folder,
            saved.step,
            saved.text,
            saved.files["agent.th"],
        )
        config = dict(stored.get("config") or {})
        algorithm, seed = str(stored.get("alg")), config.get("seed")
    for key in ("env", "map_name"):
        if stored.get(key) != getattr(facts, key):
            raise CheckpointError(
                f"{folder} is a policy of {stored.get('env')} {stored.get('map_name')}, but one of "
                f"{facts.env} {facts.map_name} is wanted: a policy knows its own task alone"
            )
    values = config.get("agent_output_type") != "pi_logits"
    greedy = values or (bool(config.get("test_greedy", True)) if way == "run" else way == "greedy")
    config.setdefault("standardise", False)  # runs from before there was the key
    config |= {"test_greedy": greedy, "env": facts.env, "map_name": facts.map_name}
    settings = Settings(config, {**facts.env_info(), "device": "cpu"})
    scheme = build_scheme(facts.env_info())
    mac = named(mac_REGISTRY, settings.mac, "mac")(scheme, {"agents": facts.n_agents}, settings)
    if not mac.acts_alone:
        raise CheckpointError(
            f"{folder} is a policy whose agents act on each other's observations and actions. What "
            "is estimated from data are agents that act alone; train it with decentralised=True"
        )
    note = f" (a checkpoint of {stored.get('env')} {stored.get('map_name')})"
    put_back(mac.agent, weights, folder / "agent.th", note)
    return Policy(
        name=name or str(path),
        folder=folder,
        step=step,
        algorithm=algorithm,
        seed=seed,
        greedy=greedy,
        epsilon=float(config.get("test_epsilon", 0.0)),
        settings=settings,
        mac=mac,
    )


def find_policies(
    roots: Sequence[str | Path], load_step: int = 0, every_step: bool = False
) -> list[Path]:
    """The folders of the policies that `roots` name: policies themselves, or folders above such.

    Of a run's model folder the step nearest to `load_step` (0: the last), or all. CheckpointError
    for a root without any.
    """
    found: dict[Path, None] = {}
    for root in map(Path, roots):
        if not root.is_dir() or is_policy(root):
            found[find_checkpoint(root) if not is_shipped(root) else root] = None
            continue
        above = sorted({p.parent for p in root.rglob("agent.th") if is_policy(p.parent)})
        shipped = [folder for folder in above if is_shipped(folder)]
        runs = dict.fromkeys(folder.parent for folder in above if not is_shipped(folder))
        if every_step:
            found |= dict.fromkeys(above)
        else:
            found |= dict.fromkeys([*shipped, *(find_checkpoint(run, load_step) for run in runs)])
        if not above:
            find_checkpoint(root)  # its error says what is expected, and what was found
    return list(found)


def is_policy(folder: Path) -> bool:
    return (folder / "agent.th").is_file() and (is_shipped(folder) or (folder / MANIFEST).is_file())


def is_shipped(folder: Path) -> bool:
    return (folder / "policy.json").is_file()


def short_names(folders: Sequence[Path]) -> list[str]:
    """The parts of the paths in which they differ, as names."""
    if len(folders) == 1:
        return ["/".join(folders[0].parts[-2:])]
    parts = [folder.resolve().parts for folder in folders]
    common = 0
    while len({p[common] for p in parts if len(p) > common}) == 1 and all(
        len(p) > common + 1 for p in parts
    ):
        common += 1
    return ["/".join(part for part in p[common:] if part != "models") for p in parts]


def load_policies(
    folders: Sequence[Path], facts: DatasetMetadata, way: str = "run"
) -> list[Policy]:
    """`load_policy` of each, under names that tell them apart."""
    pairs = zip(folders, short_names(folders))
    return [load_policy(folder, facts, way, name=name) for folder, name in pairs]


@th.no_grad()
def probabilities(policy: Policy, data: Logged) -> th.Tensor:
    """pi_i(a | tau_i) of every agent in every row, by its memory of the logged steps. `[R, n, A]`.

    As it is played: one for the best action of a greedy policy, and `epsilon` spread over the
    available ones.
    """
    mac, values, total = policy.mac, [], len(data)
    for first in range(0, total, BLOCK):
        batch = data.buffer.batch(np.arange(first, min(first + BLOCK, total)))
        outputs, avail = mac.unroll(batch), batch.rows("avail_actions")
        if policy.settings.agent_output_type == "pi_logits":
            outputs = masked_log_softmax(outputs, avail).exp()
        padded = batch.packed.unpack(mac.action_selector.probabilities(outputs, avail))
        values.append(padded[batch["filled"].squeeze(-1) > 0])
    return soften(th.cat(values), data.avail, policy.epsilon)


def soften(probs: th.Tensor, avail: th.Tensor, epsilon: float) -> th.Tensor:
    """`probs` with the share `epsilon` of uniformly drawn available actions. All `[..., n, A]`."""
    if epsilon == 0:
        return probs
    uniform = (avail > 0).float()
    # A row with nothing available (a terminal observation) keeps what it has.
    uniform = uniform / uniform.sum(-1, keepdim=True).clamp(min=1)
    return (1 - epsilon) * probs + epsilon * uniform
