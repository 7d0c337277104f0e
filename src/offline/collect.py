"""Makes datasets: rolls policies out in their simulator, one part after the other.

The behaviour policies that the project ships stand in `policies/{env}/{map}/`, one folder each with
`agent.th` (weights) and `policy.json` (algorithm, settings of its agent, where it came from), and
`recipes.yaml` says which of them make a quality, with how many episodes and which exploration.
"""

from __future__ import annotations

import copy
import fcntl
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch as th
import yaml
from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.offline.dataset import DatasetMetadata
from inspo.offline.formats.canonical import CanonicalWriter
from inspo.offline.games import QUALITIES, generate
from inspo.offline.sources import known_sources
from inspo.runners import REGISTRY as runner_REGISTRY
from inspo.utils.errors import CheckpointError, DatasetError, nearest
from inspo.utils.paths import POLICIES
from inspo.utils.seeding import spawn_seeds

DATA_SEED = 0  # of what is made from recipes, so that everybody gets the same episodes
ACTING = (  # the settings that a policy's weights were made with
    "mac",
    "agent",
    "agent_output_type",
    "action_selector",
    "obs_agent_id",
    "obs_last_action",
    "hidden_dim",
)
RECIPE_KEYS = {"policy", "episodes", "epsilon", "greedy"}


@dataclass(frozen=True)
class Part:
    """`episodes` episodes of one policy, with the share `epsilon` of random actions."""

    settings: dict  # ACTING
    weights: dict[str, th.Tensor]
    episodes: int
    epsilon: float
    greedy: bool
    source: str


def read_policy(folder: Path) -> tuple[dict, dict[str, th.Tensor]]:
    """policy.json and the weights of a shipped policy; CheckpointError if one is not whole."""
    try:
        facts = json.loads((folder / "policy.json").read_text())
        weights = th.load(folder / "agent.th", map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{folder}: expected policy.json and agent.th of a shipped policy, found a broken one "
            f"({error}). Restore the folder from the repository."
        ) from error
    return facts, weights


def recipe(env: str, map_name: str, quality: str) -> list[dict] | None:
    """The parts of a quality, `{policy, episodes}` and perhaps `epsilon` (0) and `greedy` (True)
    each; None if there is no recipe.

    `mixed_X_Y` is X % medium and Y % expert (`mixed` is `mixed_50_50`).
    """
    path = POLICIES / env / map_name / "recipes.yaml"
    if not path.exists():
        return None
    recipes = yaml.safe_load(path.read_text())
    if quality in recipes:
        return recipes[quality]
    share = re.fullmatch(r"mixed_(\d+)_(\d+)", quality)
    if not share or sum(map(int, share.groups())) != 100:
        return None
    if not {"medium", "expert"} <= recipes.keys():
        return None
    parts = []
    for name, percent in zip(("medium", "expert"), share.groups()):
        for part in recipes[name]:
            parts.append(part | {"episodes": part["episodes"] * int(percent) // 100})
    return [part for part in parts if part["episodes"] > 0]


def qualities(env: str, map_name: str) -> list[str]:
    """What can be made for this map without a download."""
    path = POLICIES / env / map_name / "recipes.yaml"
    shipped = sorted(yaml.safe_load(path.read_text())) if path.exists() else []
    return [*shipped, *QUALITIES.get((env, map_name), ())]


def dataset_path(args) -> Path:
    """`dataset.path`, or the place of this map and quality in `datasets_dir`."""
    if args.dataset["path"]:
        return Path(args.dataset["path"])
    return Path(args.datasets_dir) / args.env / f"{args.map_name}_{args.quality}.h5"


def check_obtainable(args) -> None:
    """DatasetError unless the dataset that `args` asks for is there, or can be made here."""
    path = dataset_path(args)
    if path.exists() or recipe(args.env, args.map_name, args.quality) is not None:
        return
    if args.quality in QUALITIES.get((args.env, args.map_name), ()):
        return
    made = qualities(args.env, args.map_name)
    published = [
        source
        for source in known_sources()
        if (source.env, source.map_name) == (args.env, args.map_name)
    ]
    ways = [
        f"fetch it with `python src/dataset.py download {source.name}`"
        for source in published
        if source.quality == args.quality
    ][:1]
    if made or published:
        names = dict.fromkeys([*made, *(source.quality for source in published)])
        ways.append(f"choose another quality ({', '.join(names)})")
    ways.append("name a file with dataset.path=...")
    raise DatasetError(
        f"{path}: there is no such dataset, and none of quality '{args.quality}' can be made for "
        f"{args.env} {args.map_name}. Ways on: {'; '.join(ways)}; or collect one: `python "
        f"src/main.py --config=qmix --env-config={args.env} with map_name={args.map_name} "
        f"quality={args.quality} checkpoint_path=... collect.n_episodes=5000`."
    )


def ensure_dataset(
    args, say: Callable[[str], None], progress, check: Callable[[], None] = lambda: None
) -> Path:
    """The path of the dataset that `args` asks for, made first if it can be made here.

    progress: `progress(total)` gives a bar with `update(n)` and `close()`. check: called between
    batches; raises if the run was asked to stop.
    Raises DatasetError if it is neither there nor can be made.
    """
    path = dataset_path(args)
    if path.exists() or args.dataset["path"]:
        return path  # a missing file of the user's own is the reader's error to report
    check_obtainable(args)
    with _locked(path):
        if path.exists():  # another run made it while this one waited
            return path
        parts = recipe(args.env, args.map_name, args.quality)
        if parts is not None:
            folder = POLICIES / args.env / args.map_name
            say(f"{path} is not there: rolling it out from the policies in {folder}")
            collect([_part(folder, p) for p in parts], args, path, DATA_SEED, progress, check)
        else:
            say(f"{path} is not there: generating it")
            options = {k: v for k, v in args.env_args.items() if k in ("episode_limit",)}
            generate(args.env, args.map_name, args.quality, path, DATA_SEED, **options)
    return path


def _part(folder: Path, entry: dict) -> Part:
    for key in entry.keys() - RECIPE_KEYS:
        raise DatasetError(
            f"{folder / 'recipes.yaml'}: unknown key '{key}' in {entry}.{nearest(key, RECIPE_KEYS)}"
        )
    facts, weights = read_policy(folder / entry["policy"])
    epsilon, greedy = float(entry.get("epsilon", 0.0)), bool(entry.get("greedy", True))
    return Part(
        settings={key: facts["settings"][key] for key in ACTING},
        weights=weights,
        episodes=int(entry["episodes"]),
        epsilon=epsilon,
        greedy=greedy,
        source=f"{entry['policy']} ({facts['algorithm']}, seed {facts['seed']}, "
        f"t_env {facts['t_env']}, test return {facts['test_return_mean']:.3f}), "
        f"{'greedy' if greedy else 'sampled'}, epsilon {epsilon}, {entry['episodes']} episodes",
    )


def collect(
    parts: list[Part],
    args,
    path: Path,
    seed: int,
    progress,
    check: Callable[[], None] = lambda: None,
) -> DatasetMetadata:
    """Roll out `parts` into a dataset file at `path`; nothing is left there if it fails.

    The global random states are as before afterwards.
    """
    devices = [] if not th.cuda.is_available() else list(range(th.cuda.device_count()))
    with th.random.fork_rng(devices=devices):
        return _collect(parts, args, path, seed, progress, check)


def _collect(parts, args, path, seed, progress, check) -> DatasetMetadata:
    args = SimpleNamespace(**{**vars(args), "seed": spawn_seeds(seed, str(path.stem), 1)[0]})
    th.manual_seed(args.seed)
    runner = runner_REGISTRY[args.runner](args, None)
    info = runner.get_env_info()
    vars(args).update(info)
    metadata = DatasetMetadata(
        env=args.env,
        map_name=args.map_name,
        quality=args.quality or "",
        simulator=getattr(runner.env, "simulator", args.env),
        source="; ".join(part.source for part in parts),
        env_args=json.dumps(args.env_args, sort_keys=True),
        **info,
    )
    bar = progress(sum(part.episodes for part in parts))
    try:
        with CanonicalWriter(path, metadata) as writer:
            for part in parts:
                settings = SimpleNamespace(**{**vars(args), **part.settings})
                settings.test_greedy, settings.test_epsilon = part.greedy, part.epsilon
                _collect_part(part, settings, runner, writer, bar, check)
    finally:
        bar.close()
        runner.close_env()
    return writer.metadata


def _collect_part(part: Part, args, runner, writer: CanonicalWriter, bar, check) -> None:
    scheme = build_scheme(runner.get_env_info())
    mac = mac_REGISTRY[args.mac](scheme, {"agents": args.n_agents}, args)
    try:
        mac.agent.load_state_dict(part.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the policy's weights do not fit {args.env} {args.map_name}: {error}"
        ) from error
    mac.agent.to(args.device)
    runner.setup(scheme, {"agents": args.n_agents}, None, mac)
    left = part.episodes
    while left > 0:
        check()
        batch = runner.run(test_mode=True)
        n = min(left, batch.batch_size)
        won = runner.last_stats.infos.get("battle_won")
        arrays = {key: value[:n].numpy() for key, value in batch.data.items()}
        writer.append(arrays, None if won is None else _as_array(won[:n]))
        left -= n
        bar.update(n)


def _as_array(won: list[float]):
    return th.tensor(won).to(th.uint8).numpy()


@contextmanager
def _locked(path: Path):
    """One process at a time makes the file at `path`; the lock goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def acting_settings(args) -> dict:
    """The ACTING settings of a configuration."""
    return copy.deepcopy({key: getattr(args, key) for key in ACTING})
