"""Makes datasets: rolls policies out in their simulator, one part after the other.

The behaviour policies that the project ships stand in `policies/{env}/{map}/`, one folder each with
`agent.th` (weights) and `policy.json` (algorithm, settings of its agent, where it came from), and
`recipes.yaml` says which of them make a quality, with how many episodes and which exploration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml

from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.offline import game_data, teams
from inspo.offline.formats.canonical_writer import CanonicalWriter
from inspo.offline.offline_dataset import DatasetMetadata
from inspo.offline.sources import known_sources
from inspo.runners import REGISTRY as runner_REGISTRY
from inspo.tabular import matrix_games
from inspo.utils import files
from inspo.utils.errors import CheckpointError, DatasetError, named, nearest
from inspo.utils.paths import POLICIES
from inspo.utils.phases import Phase
from inspo.utils.seeding import spawn_seeds
from inspo.utils.settings import Settings

DATA_SEED = 0  # of what is made from recipes, so that everybody gets the same episodes
ACTING = (  # the settings that a policy's weights were made with
    "mac",
    "agent",
    "agent_output_type",
    "action_selector",
    "obs_agent_id",
    "obs_last_action",
    "hidden_dim",
    "standardise",
)
ACTING_OF_SOME = ("retention", "decentralised")  # Oryx's
RECIPE_KEYS = {"policy", "episodes", "epsilon", "greedy"}


Weights = dict[str, th.Tensor]


@dataclass(frozen=True)
class Part:
    """`episodes` episodes of one policy, with the share `epsilon` of random actions.

    settings: its values of ACTING.
    """

    settings: dict[str, Any]
    weights: Weights
    episodes: int
    epsilon: float
    greedy: bool
    source: str


def read_policy(folder: Path) -> tuple[dict[str, Any], Weights]:
    """policy.json and the weights of a shipped policy; CheckpointError if one is not whole."""
    try:
        facts = json.loads((folder / "policy.json").read_text())
        weights = th.load(folder / "agent.th", map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{folder}: expected policy.json and agent.th of a shipped policy, found a broken one "
            f"({error}). Restore the folder from the repository."
        ) from error
    facts["settings"].setdefault("standardise", False)  # of policies from before there was the key
    return facts, weights


def recipes(env: str, map_name: str) -> dict[str, list[dict[str, Any]]]:
    """Quality -> parts, of a map's shipped policies; empty where there are none."""
    path = POLICIES / env / map_name / "recipes.yaml"
    found: dict[str, list[dict[str, Any]]] = {}
    return yaml.safe_load(path.read_text()) if path.exists() else found


def recipe(env: str, map_name: str, quality: str) -> list[dict[str, Any]] | None:
    """The parts of a quality, `{policy, episodes}` and perhaps `epsilon` (0) and `greedy` (True)
    each; None if there is no recipe.

    `mixed_X_Y` is X % medium and Y % expert (`mixed` is `mixed_50_50`).
    """
    known = recipes(env, map_name)
    share = re.fullmatch(r"mixed_(\d+)_(\d+)", quality)
    if quality in known or not share or not {"medium", "expert"} <= known.keys():
        return known.get(quality)
    if sum(map(int, share.groups())) != 100:
        return None
    parts = [
        part | {"episodes": part["episodes"] * int(percent) // 100}
        for name, percent in zip(("medium", "expert"), share.groups())
        for part in known[name]
    ]
    return [part for part in parts if part["episodes"] > 0]


def qualities(env: str, map_name: str) -> list[str]:
    """What can be made for this map without a download."""
    return [*sorted(recipes(env, map_name)), *game_data.qualities(env, map_name)]


def dataset_path(args: Any) -> Path:
    """`dataset.path`, or the place of this map and quality in `datasets_dir`.

    args: the Settings of a run, or whatever else has these keys as attributes. Raises ConfigError
    if a name does not do as a part of a path.
    """
    if args.dataset["path"]:
        return Path(args.dataset["path"])
    env, map_name, quality = (
        files.path_component(key, str(getattr(args, key))) for key in ("env", "map_name", "quality")
    )
    return Path(args.datasets_dir) / env / f"{map_name}_{quality}.h5"


def check_obtainable(args: Any) -> None:
    """DatasetError unless the dataset that `args` asks for is there, or can be made here."""
    path = dataset_path(args)
    env, map_name, quality = str(args.env), str(args.map_name), str(args.quality)
    made = qualities(env, map_name)
    if path.exists() or quality in made or recipe(env, map_name, quality) is not None:
        return
    if env in teams.SCRIPTS and quality.startswith("conventions_"):
        teams.shares(env, map_name, quality)
        return
    published = [line for line in known_sources() if (line.env, line.map_name) == (env, map_name)]
    if env == "matrix" and not (made or published):
        matrix_games.parse(map_name)  # its error says which games there are
    ways = [f"fetch it with `{line.how}`" for line in published if line.quality == quality][:1]
    if made or published:
        names = dict.fromkeys([*made, *(line.quality for line in published)])
        ways.append(f"choose another quality ({', '.join(names)})")
    ways.append("name a file with dataset.path=...")
    raise DatasetError(
        f"{path}: there is no such dataset, and none of quality '{quality}' can be made for "
        f"{env} {map_name}. Ways on: {'; '.join(ways)}; or collect one: `python "
        f"src/main.py --config=qmix --env-config={env} with map_name={map_name} "
        f"quality={quality} checkpoint_path=... collect.n_episodes=5000`."
    )


def ensure_dataset(
    args: Settings,
    log: Callable[[str], None],
    progress: Callable[[int], Phase],
    check: Callable[[], None] = lambda: None,
) -> Path:
    """The path of the dataset that `args` asks for, made first if it can be made here.

    progress: begins a phase of so many episodes. check: called between batches; raises if the run
    was asked to stop. Raises DatasetError if it is neither there nor can be made.
    """
    path = dataset_path(args)
    if path.exists() or args.dataset.path:
        return path  # a missing file of the user's own is the reader's error to report
    check_obtainable(args)
    env, map_name, quality = str(args.env), str(args.map_name), str(args.quality)
    with files.locked(path):
        if path.exists():  # another run made it while this one waited
            return path
        parts = recipe(env, map_name, quality)
        if parts is not None:
            folder = POLICIES / env / map_name
            log(f"{path} is not there: rolling it out from the policies in {folder}")
            collect([_part(folder, p) for p in parts], args, path, DATA_SEED, progress, check)
        else:
            log(f"{path} is not there: generating it")
            names = ("episode_limit", "local_ratio", "shaping")
            options = {k: v for k, v in args.env_args.items() if k in names}
            game_data.generate(env, map_name, quality, path, DATA_SEED, **options)
    return path


def _part(folder: Path, entry: dict[str, Any]) -> Part:
    for key in entry.keys() - RECIPE_KEYS:
        raise DatasetError(
            f"{folder / 'recipes.yaml'}: unknown key '{key}' in {entry}.{nearest(key, RECIPE_KEYS)}"
        )
    facts, weights = read_policy(folder / entry["policy"])
    epsilon, greedy = float(entry.get("epsilon", 0.0)), bool(entry.get("greedy", True))
    return Part(
        settings=acting_of(facts["settings"]),
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
    args: Settings,
    path: Path,
    seed: int,
    progress: Callable[[int], Phase],
    check: Callable[[], None] = lambda: None,
) -> DatasetMetadata:
    """Roll out `parts` into a dataset file at `path`; nothing is left there if it fails.

    The global random states are as before afterwards.
    """
    devices = list(range(th.cuda.device_count()))
    with th.random.fork_rng(devices=devices):
        seed = spawn_seeds(seed, str(path.stem), 1)[0]
        th.manual_seed(seed)
        runner = runner_REGISTRY[args.runner](_with(args, seed=seed), None)
        info: dict[str, Any] = runner.get_env_info()
        metadata = DatasetMetadata(
            env=str(args.env),
            map_name=str(args.map_name),
            quality=args.quality or "",
            simulator=str(getattr(runner.env, "simulator", args.env)),
            source="; ".join(part.source for part in parts),
            env_args=json.dumps(dict(args.env_args), sort_keys=True),
            **info,
        )
        bar = progress(sum(part.episodes for part in parts))
        try:
            with CanonicalWriter(path, metadata) as writer:
                for part in parts:
                    acting = {"test_greedy": part.greedy, "test_epsilon": part.epsilon}
                    settings = _with(args, seed=seed, **part.settings, **acting).with_facts(**info)
                    _collect_part(part, settings, runner, writer, bar, check)
        finally:
            bar.close()
            runner.close_env()
    return writer.metadata


def _with(args: Settings, **values: Any) -> Settings:
    """The settings under which a part is played: those of the run, and its policy's own."""
    facts = {"device": args.device}
    return Settings({**args.as_dict(), **values}, facts)


def _collect_part(
    part: Part,
    args: Settings,
    runner: Any,
    writer: CanonicalWriter,
    bar: Phase,
    check: Callable[[], None],
) -> None:
    scheme = build_scheme(runner.get_env_info())
    mac = named(mac_REGISTRY, args.mac, "mac")(scheme, {"agents": args.n_agents}, args)
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
        writer.append(arrays, None if won is None else np.array(won[:n]).astype(np.uint8))
        left -= n
        bar.update(n)


def acting_settings(args: Settings) -> dict[str, Any]:
    """The ACTING settings of a configuration."""
    return acting_of(args.as_dict())


def acting_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `settings` that a policy acts by. KeyError if one that all have is missing."""
    some = [key for key in ACTING_OF_SOME if key in settings]
    return {key: settings[key] for key in [*ACTING, *some]}
