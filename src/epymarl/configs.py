"""Configurations of our offline algorithms in the form that EPyMARL reads.

EPyMARL knows no presets and no rules: each algorithm gets one file with its own settings, and one
more for each environment that has presets, with these applied. The rules travel beside the files
and are applied by the runner there.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from inspo.utils.config import flatten, get, matching_presets, names, one_liner, put, read_yaml
from inspo.utils.errors import ConfigError, nearest
from inspo.utils.paths import CONFIG_DIR

DEFAULT = ("inspo", "bc")
FROM_DEFAULT = ("dataset.path", "dataset.in_memory", "test_epsilon")  # EPyMARL has not got them
OF_TESTS = ("test_greedy", "test_nepisode", "test_epsilon")  # what our envs/*.yaml say of tests
CONTROLLER = "offline_{}"  # `basic_mac` is taken there


def offline_algorithms() -> list[str]:
    """All that learn from data (a key `train_interval` says of the others that they play)."""
    return [name for name in names("algs", CONFIG_DIR) if "train_interval" not in values_of(name)]


def chosen(text: str | None) -> list[str] | None:
    """The algorithms of `--algs`: all, or names with commas between them; None as it is."""
    if text is None:
        return None
    known = offline_algorithms()
    asked = known if text == "all" else [name for name in text.split(",") if name]
    for name in asked:
        if name not in known:
            raise ConfigError(
                f"--algs: '{name}' is no offline algorithm.{nearest(name, known)} "
                f"Known: all, {', '.join(known)}"
            )
    if not asked:
        raise ConfigError(f"--algs: expected all, or names of {', '.join(known)}; found none")
    return sorted(set(asked), key=known.index)


@cache
def _content(path: Path) -> Any:
    """What a YAML file of ours holds, to be read only; each is asked for many times."""
    return read_yaml(path)


def files_of(algorithm: str) -> list[Path]:
    """The YAML files that an algorithm is made of, the one that it extends first."""
    path = CONFIG_DIR / "algs" / f"{algorithm}.yaml"
    parent = _content(path).get("_extends")
    return [*(files_of(parent) if parent else []), path]


def values_of(algorithm: str) -> dict[str, Any]:
    """Its settings without presets, nested."""
    values: dict[str, Any] = {}
    for path in files_of(algorithm):
        for key, value in flatten(_content(path)):
            if not key.startswith("_"):
                put(values, key, value)
    return values


def complete(algorithm: str) -> dict[str, Any]:
    """All keys of the algorithm's file in EPyMARL, nested, in order."""
    values = values_of(algorithm)
    values["mac"] = CONTROLLER.format(values["mac"])
    default = _content(CONFIG_DIR / "default.yaml")
    for key in FROM_DEFAULT:
        put(values, key, get(default, key))
    return values | {"runner": "offline", "batch_size_run": 1, "algorithm": algorithm}


def keys_of(algorithm: str) -> dict[str, list]:
    """key -> [value, rule] of all that the runner checks."""
    rules: dict[str, Any] = {}
    for path in (CONFIG_DIR / "default.yaml", *files_of(algorithm)):
        for key, rule in (_content(path).get("_rules") or {}).items():
            rules[key] = rules.get(key, {}) | rule
    unchecked = ("name", "mac", "runner", "batch_size_run", "algorithm")
    return {
        key: [value, rules.get(key, {})]
        for key, value in flatten(complete(algorithm))
        if key not in unchecked
    }


def configs(algorithm: str) -> dict[str, str]:
    """File name -> content: `inspo.yaml`, and `inspo_ENV.yaml` for environments with presets.

    A preset for a certain map or quality is told in the head of the file, as the words to add.
    """
    presets = CONFIG_DIR / "presets" / f"{algorithm}.yaml"
    entries = _content(presets) if presets.exists() else []
    environments = dict.fromkeys(["", *(env for entry in entries for env in _environments(entry))])
    title = one_liner(CONFIG_DIR / "algs" / f"{algorithm}.yaml")
    comments = _comments(algorithm)
    files = {}
    for env in environments:
        values, head = complete(algorithm), [title]
        if env:
            head[0] += f"; as on {env}"
            values |= _tests_of(env)
        for entry in entries:
            further = {k: v for k, v in (entry.get("match") or {}).items() if k != "env"}
            if not further and matching_presets([entry], {"env": env}, env):
                for key, value in flatten(entry["set"]):
                    put(values, key, value)
                head.append(f"Preset, because {entry['because']}")
            elif further and env and env in _environments(entry):
                words = " ".join(f"{key}={value}" for key, value in flatten(entry["set"]))
                where = ", ".join(f"{key} {value}" for key, value in further.items())
                head.append(f"For {where}: with {words}, because {entry['because']}")
        values["buffer_size"] = values["batch_size"]
        name = f"{algorithm}_{env}" if env else algorithm
        files[f"{name}.yaml"] = _header(head) + _render(values, comments)
    return files


def _environments(entry: dict[str, Any]) -> list[str]:
    """Those that a preset names."""
    env = (entry.get("match") or {}).get("env", [])
    return env if isinstance(env, list) else [env]


def _tests_of(env: str) -> dict[str, Any]:
    """What the environment's own file says of its tests."""
    found: dict[str, Any] = {}
    for name in (env, f"{env}_offline"):
        path = CONFIG_DIR / "envs" / f"{name}.yaml"
        if path.exists():
            content = _content(path)
            found |= {key: content[key] for key in OF_TESTS if key in content}
    return found


COMMENTS = {
    "mac": "the controller, src/controllers/__init__.py",
    "learner": "src/learners/__init__.py",
    "runner": "trains on dataset.path, tests in the environment",
    "batch_size_run": "episodes of a test are played one at a time",
    "buffer_size": "always batch_size: the buffer only hands on",
    "algorithm": "whose types and rules the values above are held to; leave it as it is",
    "dataset.path": "the data: a file or folder in any format that the project reads",
    "dataset.in_memory": "True: on the training device; False: on disk; auto: by free memory",
    "t_max": "stop after so many filled steps of the batches",
    "test_nepisode": "episodes of a test",
    "save_model_interval": "steps between two checkpoints, with save_model=True",
}


def _comments(algorithm: str) -> dict[str, str]:
    """Dotted key -> the comment in its line, in our files."""
    found: dict[str, str] = {}
    for path in (CONFIG_DIR / "default.yaml", *files_of(algorithm)):
        group = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.match(r"( *)(\w+):([^#]*)(?:\s#\s*(.*))?$", line)
            if not match:
                continue
            indent, key, value, comment = match.groups()
            group = group if indent else key if not value.strip() else ""
            if comment:
                found[f"{group}.{key}" if indent else key] = comment
    return found | COMMENTS


def _header(lines: list[str]) -> str:
    lines = [*lines, "Written by the project's plugin; its docs/epymarl.md says what changes here."]
    return "".join(f"# {line}\n" for line in lines) + "\n"


def _render(values: dict[str, Any], comments: dict[str, str], group: str = "") -> str:
    """`values` as YAML with a comment for each key, nested groups indented."""
    text = ""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            text += f"{key}:\n" + _render(value, comments, f"{key}.")
            continue
        line = yaml.safe_dump({key: value}, default_flow_style=None, width=1000).strip()
        if line.startswith("{"):  # how it writes a mapping that holds a scalar alone
            line = line[1:-1]
        comment = comments.get(f"{group}{key}")
        line = ("  " if group else "") + line
        text += f"{line:<26}  # {comment}\n" if comment else f"{line}\n"
    return text
