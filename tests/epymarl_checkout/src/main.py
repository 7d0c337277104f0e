"""A small program in EPyMARL's shape, for tests/test_plugin.py: the files, names and orders that a
plugin meets there. `python src/main.py --config=ALG --env-config=ENV with key=value ...`."""

import sys
from pathlib import Path

import numpy as np
import torch as th
import yaml

from run import run

CONFIG = Path(__file__).parent / "config"


def read(name):
    return yaml.load((CONFIG / f"{name}.yaml").read_text(), Loader=yaml.FullLoader)


def merge(below, above):
    for key, value in above.items():
        below[key] = merge(below.get(key, {}), value) if isinstance(value, dict) else value
    return below


def load(words):
    """default < environment < algorithm < the words after `with`, which add no keys."""
    chosen = dict(word.split("=") for word in words if word.startswith("--"))
    config = read("default")
    merge(config, read(f"envs/{chosen['--env-config']}"))
    merge(config, read(f"algs/{chosen['--config']}"))
    for word in words[words.index("with") + 1 :] if "with" in words else []:
        key, text = word.split("=", 1)
        *groups, last = key.split(".")
        place = config
        for group in groups:
            place = place[group]
        if last not in place:
            raise KeyError(f"{key} is in no YAML file")
        place[last] = yaml.safe_load(text)
    return config


def main(words):
    config = load(words)
    np.random.seed(config["seed"])
    th.manual_seed(config["seed"])
    config["env_args"]["seed"] = config["seed"]
    return run(config)


if __name__ == "__main__":
    main(sys.argv[1:])
