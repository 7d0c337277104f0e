"""Records of runs as main.py leaves them, and runs as tables take them; nothing is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inspo.experiments.records import Run

N_EPISODES = 8
WON = {  # method -> quality of 2s3z -> won of N_EPISODES, of seeds 0 to 3
    "bc": {"medium": [3, 4, 4, 5], "mixed": [2, 4, 3, 6]},
    "omiga": {"medium": [4, 4, 5, 6], "mixed": [3, 6, 5, 6]},
    "inspo": {"medium": [6, 7, 5, 7], "mixed": [8, 7, 6, 8]},
}


def made_run(seed: int, value: Any, config=None, dataset_hash="abc", **changes) -> Run:
    """A finished run whose final test has `value` under every metric."""
    final = {"t_env": 100, "test_expected_return": value, "test_battle_won_mean": value}
    final |= {"test_return_mean": value}
    settings = dict(
        folder=Path("r"), status="COMPLETED", updates=10, t_env=100, final=final, hours=0.5,
        config={"name": "bc", "env": "matrix", "lr": 0.1, "test_nepisode": 2, "seed": seed}
        | (config or {}),
        tests=[final | {"t_env": 0}, final], command=["--config=bc"], commit="0123456789abcdef",
        raw={"returns": [1.0, 2.5], "lengths": [1, 1], "battle_won": [1, 0]}, simulator="SMAX",
        dataset={"hash": dataset_hash, "episodes": 50, "return_mean": 0.5, "win_rate": 0.4},
        machine="a CPU, 2 cores",
    )  # fmt: skip
    return Run(**(settings | changes))


def write_record(
    root, name="bc", quality="medium", seed=0, won=4, status="COMPLETED", steps=(0, 50), number=1,
    result=None, env="smax", final=(), facts=(), **changes,
):  # fmt: skip
    """Its folder; `won` of N_EPISODES test episodes are won. changes: of the configuration; final:
    of the final test; facts: of the whole result; result: another one in its place."""
    config = {
        "name": name, "label": "default_label", "seed": seed, "env": env, "map_name": "2s3z",
        "env_args": {"map_name": "2s3z"}, "offline": True, "quality": quality, "t_max": 100,
        "final_test_nepisode": N_EPISODES, "test_greedy": True, "test_epsilon": 0.0,
        "evaluate": False, "collect": {"n_episodes": 0, "path": None}, "lr": 0.1,
        "local_results_path": str(root), "torch_threads": 1, "dataset": {"path": None},
    } | changes  # fmt: skip
    share = won / N_EPISODES
    tests = [
        {"t_env": t, "test_battle_won_mean": share * t / 200, "test_return_mean": 0.0}
        for t in steps
    ]
    last = {"t_env": 100, "test_battle_won_mean": share, "test_return_mean": 20 * share,
            "test_return_std": 1.0} | dict(final)  # fmt: skip
    if result is None and status == "COMPLETED":
        result = {
            "t_env": 100, "updates": 10, "final": last, "tests": [*tests, last],
            "returns": [20.0 * (k < won) for k in range(N_EPISODES)],
            "battle_won": [float(k < won) for k in range(N_EPISODES)],
            "lengths": [5] * N_EPISODES, "dataset": {"hash": "abc"}, "simulator": "smax 1",
        } | dict(facts)  # fmt: skip
    folder = root / "sacred" / name / f"2s3z_{quality}_{seed}" / str(number)
    folder.mkdir(parents=True)
    started = f"2026-01-01T00:00:{number:02d}"
    run = {"status": status, "start_time": started, "result": result}
    for file, content in (("run", run), ("config", config), ("info", {"git_commit": "f" * 40})):
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def write_seeds(root, name: str, won: list[int], **changes) -> list[Path]:
    """A record for each number of wins, of seeds 0, 1, ..."""
    return [write_record(root, name, seed=s, won=n, **changes) for s, n in enumerate(won)]


def write_grid(root, without=(), **changes) -> None:
    """The records of WON but those of some (method, quality, seed)."""
    for name, tasks in WON.items():
        for quality, values in tasks.items():
            for seed, won in enumerate(values):
                if (name, quality, seed) not in without:
                    write_record(root, name, quality, seed, won, **changes)


def edit(folder: Path, change: Callable[[Any], Any], file: str = "run") -> None:
    """Change a record's file in place: `change` alters its content."""
    path = folder / f"{file}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
