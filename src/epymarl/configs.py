"""Configurations of our offline algorithms in the form that EPyMARL reads.

EPyMARL knows no presets: each algorithm gets a file with its own settings, and one more for every
environment that has presets, with these applied. What a key may hold is checked by the runner.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from inspo import __version__
from inspo.utils.config import (
    flatten,
    get,
    load_config,
    names,
    offline_algorithms,
    one_liner,
    put,
    read_presets,
    read_yaml,
)
from inspo.utils.errors import require_known
from inspo.utils.paths import CONFIG_DIR

DEFAULT = ["bc", "inspo"]
ALGORITHMS = CONFIG_DIR / "algs"
REGISTERED = ("learner", "mac", "runner")  # each is "offline" in EPyMARL's registry
# Ours, which EPyMARL has not got.
ADDED = [*(f"dataset.{key}" for key in ("path", "in_memory", "keep", "keep_share"))]
ADDED += ["standardise", "test_epsilon"]
TESTS = ["test_greedy", "test_nepisode"]  # EPyMARL's too, but ours differ between environments


def declaring(algorithm: str) -> Path:
    """The file that declares an algorithm's keys: its own, or the one that it extends."""
    path = ALGORITHMS / f"{algorithm}.yaml"
    parent = read_yaml(path).get("_extends")
    return declaring(parent) if parent else path


def own_keys(algorithm: str) -> list[str]:
    """The dotted keys that an algorithm has beside those that all have."""
    return [key for key, _ in flatten(read_yaml(declaring(algorithm)))]


def chosen(text: str) -> list[str]:
    """The algorithms of `--algs`: all, or names with commas between them."""
    known = offline_algorithms()
    requested = known if text == "all" else sorted(set(text.split(",")))
    for name in requested:
        require_known(name, ["all", *known], "--algs: no offline algorithm is called")
    return requested


def settings_of(algorithm: str, env: str, *overrides: str) -> dict[str, Any]:
    """Our configuration of it offline, without the presets for a certain quality of data."""
    words = [f"--config={algorithm}", f"--env-config={env}_offline", "with", "quality=null"]
    return load_config([*words, *overrides]).values


def configs(algorithm: str) -> dict[str, str]:
    """File name -> content: `inspo.yaml`, and `inspo_ENV.yaml` for environments with presets."""
    plain = settings_of(algorithm, "matrix", "use_presets=False")
    files = {f"{algorithm}.yaml": _file(algorithm, [], plain, ADDED)}
    for env in (name.removesuffix("_offline") for name in names("envs") if "_offline" in name):
        if heads := list(_presets(algorithm, env)):
            with_presets = settings_of(algorithm, env)
            plain = settings_of(algorithm, env, "use_presets=False")
            changed = [key for key, value in flatten(with_presets) if value != get(plain, key)]
            known = {*own_keys(algorithm), "use_presets"}
            keys = [*ADDED, *TESTS, *(key for key in changed if key not in known)]
            heads = [f"As on {env}", *heads]
            files[f"{algorithm}_{env}.yaml"] = _file(algorithm, heads, with_presets, keys)
    return files


def _presets(algorithm: str, env: str) -> Iterator[str]:
    """A line for each preset on `env`; one for a certain map or quality as the words to add."""
    path = CONFIG_DIR / "presets" / f"{algorithm}.yaml"
    for entry in read_presets(path):
        match = dict(entry.get("match") or {})
        if env in re.findall(r"\w+", str(match.pop("env", ""))):
            words = " ".join(f"{key}={value}" for key, value in flatten(entry["set"]))
            where = ", ".join(f"{key} {value}" for key, value in match.items())
            head = f"For {where}: with {words}" if match else "Preset"
            yield f"{head}, because {entry['because']}"


def _file(algorithm: str, heads: list[str], settings: Mapping[str, Any], keys: list[str]) -> str:
    """Our file with the values of `settings`, and further keys below it."""
    text = declaring(algorithm).read_text(encoding="utf-8").partition("\n")[2]
    text = f"# {one_liner(ALGORITHMS / f'{algorithm}.yaml')}\n{text}"
    group, lines = "", []
    for line in text.splitlines():
        if match := re.match(r"( *)(\w+):([^#]*)(#.*)?$", line):
            indent, key, value, comment = match.groups()
            group = group if indent else "" if value.strip() else f"{key}."
            if value.strip():
                value = "offline" if key in REGISTERED else get(settings, group + key)
                value = yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]
                line = f"{indent}{key}: {value}".ljust(27) + f" {comment or ''}"
        lines.append(line.rstrip())
    lines[1:1] = [f"# {head}" for head in heads]
    lines += ["", "# For EPyMARL; docs/epymarl.md of the project inspo explains them"]
    further = {"runner": "offline", "batch_size_run": 1, "buffer_size": settings["batch_size"]}
    further |= {"algorithm": algorithm, "inspo_version": __version__}
    for key in keys:
        put(further, key, get(settings, key))
    return "\n".join(lines) + "\n" + yaml.safe_dump(further, sort_keys=False)
