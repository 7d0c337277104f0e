#!/usr/bin/env python
"""Put a trained policy among those that the repository ships, with where it came from.

    python scripts/ship_policy.py RUN STEP NAME [--episodes 320]

RUN is a Sacred folder (results/sacred/ALG/MAP/ID), STEP the checkpoint (the nearest is taken), NAME
the folder made under src/policies/{env}/{map}/. The policy is tested on `--episodes` greedy
episodes, with a seed of their own; command, commit, seed and score go into policy.json.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch as th

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "package"))

from inspo.main import main as run_main
from inspo.offline.collect import ACTING
from inspo.utils.checkpoints import find_checkpoint, load_checkpoint
from inspo.utils.paths import POLICIES

TEST_SEED = 1000
WINS = ("battle_won", "solved")  # what an environment calls success


def evaluate(config: dict, models: Path, step: int, episodes: int) -> dict:
    """The result of main.py's evaluation of one checkpoint."""
    settings = {key: config[key] for key in ACTING}
    settings |= {f"env_args.{key}": value for key, value in config["env_args"].items()}
    with tempfile.TemporaryDirectory() as results:
        status = run_main(
            [
                f"--config={config['name']}",
                f"--env-config={config['env']}",
                "with",
                f"map_name={config['map_name']}",
                *(f"{key}={value}" for key, value in settings.items()),
                f"seed={TEST_SEED}",
                "evaluate=True",
                f"checkpoint_path={models}",
                f"load_step={step}",
                f"test_nepisode={episodes}",
                f"local_results_path={results}",
            ]
        )
        if status:
            raise SystemExit(status)
        return json.loads(next(Path(results).rglob("run.json")).read_text())["result"]


def ship(run: Path, step: int, name: str, episodes: int) -> Path:
    config = json.loads((run / "config.json").read_text())
    info = json.loads((run / "info.json").read_text())
    token = next(
        line.split("] ")[1].split(" on ")[0]
        for line in (run / "cout.txt").read_text().splitlines()
        if " recorded in " in line
    )
    models = run.parents[3] / "models" / token
    saved = load_checkpoint(find_checkpoint(models, step), only=["agent.th"])
    result = evaluate(config, models, saved.step, episodes)
    folder = POLICIES / config["env"] / config["map_name"] / name
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "algorithm": config["name"],
        "env": config["env"],
        "map_name": config["map_name"],
        "seed": config["seed"],
        "t_env": saved.step,
        "commit": info["git_commit"],
        "command": "python src/main.py "
        + " ".join(w for w in info["command_line"] if not w.startswith("local_results_path")),
        "versions": info["versions"],
        "test_episodes": len(result["returns"]),
        "test_seed": TEST_SEED,
        "test_return_mean": sum(result["returns"]) / len(result["returns"]),
        **{f"test_{name}_mean": sum(v) / len(v) for name, v in result.items() if name in WINS},
        "settings": {key: config[key] for key in ACTING},
    }
    th.save(saved.files["agent.th"], folder / "agent.th.tmp")
    os.replace(folder / "agent.th.tmp", folder / "agent.th")
    (folder / "policy.json").write_text(json.dumps(facts, indent=2) + "\n")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("step", type=int)
    parser.add_argument("name")
    parser.add_argument("--episodes", type=int, default=320)
    options = parser.parse_args()
    print(ship(options.run.resolve(), options.step, options.name, options.episodes))
