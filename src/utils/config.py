"""From the command line and the YAML files to one checked configuration.

Layers, each over the one before: `default.yaml`, `envs/ENV.yaml`, `algs/ALG.yaml`, the presets that
match (`presets/{env}.yaml`, then `presets/ALG.yaml`), the overrides after `with`. A key must be
declared in a YAML file before anything may override it (keys.py says how), and keeps the type of
its declaration.

Two top-level sections of a file are no keys:

- `_extends: NAME` reads the file NAME.yaml of the same folder first (an entry in presets).
- `maps: [..]` in an environment's file lists the maps that `env_args.map_name` may name.

Nothing here imports more than yaml, so that `--help` and an error answer at once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from inspo.utils.command_line import (  # noqa: F401
    Arguments,
    help_text,
    names,
    one_liner,
    parse_arguments,
    parse_value,
)
from inspo.utils.errors import ConfigError, nearest, require_known
from inspo.utils.keys import Key, converted, declare, type_name
from inspo.utils.modes import check_mode
from inspo.utils.nested import flatten, get, has, put
from inspo.utils.paths import CONFIG_DIR, PACKAGE, PROJECT_ROOT
from inspo.utils.yaml_files import read_comments, read_yaml

# Two names of one value; setting one sets the other.
ALIASES = {"map_name": "env_args.map_name"}
# Made absolute here, so that the rest of the program never asks what a relative path is relative
# to: one that the user types, to the current folder; one from a YAML file, to the project.
PATH_KEYS = (
    "local_results_path",
    "datasets_dir",
    "dataset.path",
    "checkpoint_path",
    "resume",
    "collect.path",
    "record",
)
NAME_BYTES = 80  # of a key that names files: several stand in one name, which may have 255
_MISSING = object()


@dataclass(frozen=True)
class Config:
    """What a run is made of. `values` is the whole configuration, nested, complete and checked;
    `notes` are lines that say what presets set, and why."""

    command: str
    algorithm: str
    environment: str
    values: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class _Layers:
    """The configuration while it is being put together: values, and how each key is declared."""

    values: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)  # where each key was first declared


# --------------------------------------------------------------------------------------------------
# Layers


def _unknown_key(key: str, layers: _Layers) -> ConfigError:
    known = [name for name, _ in flatten(layers.values)]
    tails = {name.rsplit(".", 1)[-1]: name for name in known}
    hint = nearest(key, known)
    if not hint and key.rsplit(".", 1)[-1] in tails:
        hint = f" Did you mean '{tails[key.rsplit('.', 1)[-1]]}'?"
    return ConfigError(
        f"unknown key '{key}'.{hint} Keys are declared in src/config/*.yaml "
        "(print_config shows all of them)"
    )


def _join_aliases(updates: dict[str, Any], layers: _Layers, source: str) -> dict[str, Any]:
    """Let each alias of a layer set its partner too; both given and different is an error."""
    updates = dict(updates)
    for short, long in ALIASES.items():
        first, second = updates.get(short), updates.get(long)
        for name in (short, long):
            if name in updates and updates[name] is None and get(layers.values, long) is not None:
                raise ConfigError(f"{name}: expected a name, found null")
        if first is not None and second is not None and first != second:
            raise ConfigError(
                f"{short}={first} and {long}={second} name the same thing and disagree; "
                "give one of the two"
            )
        value = first if first is not None else second
        if value is None:
            continue
        if long not in updates and not has(layers.values, long):
            if source == "with":
                raise ConfigError(f"{short}={value}: this environment has no maps to choose from")
            continue
        updates[long] = value
        if short in updates or has(layers.values, short):
            updates[short] = value
    return updates


def _apply(
    layers: _Layers,
    updates: Mapping[str, Any],
    source: str,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Put one layer, flat with dotted keys, over the values so far; all keys are declared."""
    for key, value in _join_aliases(dict(updates), layers, source).items():
        old = get(layers.values, key, _MISSING)
        try:
            if source == "with" and key == "env":
                raise ConfigError("env: an environment is chosen by --env-config=NAME")
            if old is _MISSING:
                _check_parents(key, layers.values)
                raise _unknown_key(key, layers)
            if isinstance(old, Mapping) and value == {}:
                continue
            declared = layers.keys.get(key, Key(key, types=("dict",)))
            value = converted(declared, value, (texts or {}).get(key))
        except ConfigError as error:
            if source == "with":
                raise
            raise ConfigError(f"{source}: {error}") from None
        put(layers.values, key, value)


def _check_parents(key: str, values: Mapping[str, Any]) -> None:
    parts = key.split(".")
    for end in range(1, len(parts)):
        parent = ".".join(parts[:end])
        value = get(values, parent, _MISSING)
        if value is not _MISSING and not isinstance(value, Mapping):
            raise ConfigError(f"unknown key '{key}': {parent} is a {type_name(value)}, not a group")


def _read_layer(layers: _Layers, path: Path, children: tuple[Path, ...] = ()) -> None:
    """One YAML file over the values so far, with what it declares."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found a {type_name(content)}")
    parent = content.pop("_extends", None)
    if parent is not None:
        beside = {file.stem: file for file in path.parent.glob("*.yaml")}
        other = beside.get(str(parent), path)
        if other in (path, *children):
            raise ConfigError(f"{path}: _extends: there is no other file '{parent}.yaml' beside it")
        _read_layer(layers, other, (path, *children))
    maps = content.pop("maps", None)
    _declare(layers, content, path)
    if maps is not None:
        if not isinstance(maps, list) or not all(isinstance(name, str) for name in maps):
            raise ConfigError(f"{path}: maps: expected a list of names, found {maps!r}")
        for name in ("map_name", "env_args.map_name"):
            layers.keys[name] = replace(layers.keys.get(name, Key(name)), choices=tuple(maps))
    _apply(layers, dict(flatten(content)), str(path))


def _declare(layers: _Layers, content: Mapping[str, Any], path: Path) -> None:
    """Take in how a file declares its keys; a key that is new gets its value too."""
    comments = read_comments(path)
    for name, value in flatten(content):
        key = declare(name, value, comments.get(name, ""), str(path))
        known = layers.keys.get(name)
        key = known.narrowed(key) if known else key
        if not key.types and value is not None:
            key = replace(key, types=(type_name(value),))
        layers.keys[name] = key
        if not has(layers.values, name):
            _check_parents(name, layers.values)
            layers.files[name] = path
            put(layers.values, name, value)


def _named_file(kind: str, name: str, config_dir: Path) -> Path:
    option = {"algs": "algorithm (--config)", "envs": "environment (--env-config)"}[kind]
    require_known(name, names(kind, config_dir), f"unknown {option}")
    return config_dir / kind / f"{name}.yaml"


def _base_layers(algorithm: str, environment: str, config_dir: Path) -> _Layers:
    layers = _Layers()
    for path in (
        config_dir / "default.yaml",
        _named_file("envs", environment, config_dir),
        _named_file("algs", algorithm, config_dir),
    ):
        _read_layer(layers, path)
    if get(layers.values, "name") is None:
        layers.values["name"] = algorithm
    _check_read(layers)
    return layers


def _check_read(layers: _Layers) -> None:
    """ConfigError for a key that no code reads: one of another framework, or a misspelt one."""
    for key, path in layers.files.items():
        name = key.rsplit(".", 1)[-1]
        if key.startswith("env_args.") or name in names_read():
            continue
        hint = nearest(name, {other.rsplit(".", 1)[-1] for other in layers.keys} - {name})
        raise ConfigError(f"{path}: no code reads the key '{key}'.{hint} Correct or remove it")


@cache
def names_read() -> frozenset[str]:
    """Every name that the package's code reads as an attribute or writes in quotation marks."""
    names: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        names.update(re.findall(r"\.([a-z]\w*)", text), re.findall(r"[\"']([a-z]\w*)[\"']", text))
    return frozenset(names)


def _parse_overrides(
    overrides: Iterable[tuple[str, str]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Flat updates and their texts; of a key given twice, the last one counts."""
    updates: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for key, text in overrides:
        value = parse_value(text)
        for name, piece in flatten({key: value}):
            updates[name] = piece
            texts[name] = text if name == key else repr(piece)
    for short, long in ALIASES.items():
        for one, other in ((short, long), (long, short)):
            if one in texts and other not in texts:
                texts[other] = texts[one]
    return updates, texts


# --------------------------------------------------------------------------------------------------
# Presets


def matching_presets(
    entries: list[dict[str, Any]], values: Mapping[str, Any], environment: str
) -> list[dict[str, Any]]:
    """The entries whose every `match` key fits. `env` fits the simulator's or the file's name."""

    def fits(key: str, wanted: Any) -> bool:
        options = wanted if isinstance(wanted, list) else [wanted]
        found = [get(values, key)] + ([environment] if key == "env" else [])
        return any(value in options for value in found)

    return [
        entry
        for entry in entries
        if all(fits(key, wanted) for key, wanted in (entry.get("match") or {}).items())
    ]


def read_presets(path: Path) -> list[dict[str, Any]]:
    """The entries of a file; in place of `_extends: NAME` those of NAME.yaml beside it."""
    if not path.exists():
        return []
    entries = read_yaml(path) or []
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: expected a list of presets, found a {type_name(entries)}")
    found: list[dict[str, Any]] = []
    for entry in entries:
        extends = isinstance(entry, dict) and entry.keys() == {"_extends"}
        found += read_presets(path.with_name(f"{entry['_extends']}.yaml")) if extends else [entry]
    return found


def _checked_presets(path: Path, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = read_presets(path)
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or set(entry) - {"match", "because", "set"}:
            raise ConfigError(f"{where}: expected the keys match, because, set alone")
        if not entry.get("because") or not isinstance(entry.get("set"), dict):
            raise ConfigError(f"{where}: expected a reason (because) and keys to set (set)")
        if not isinstance(entry.get("match") or {}, dict):
            raise ConfigError(f"{where}: match: expected keys and values, found {entry['match']!r}")
        for key in map(str, entry.get("match") or {}):
            if not has(values, key):
                raise ConfigError(f"{where}: match: unknown key '{key}'.{nearest(key, values)}")
    return entries


def _apply_presets(
    layers: _Layers,
    arguments: Arguments,
    updates: Mapping[str, Any],
    texts: Mapping[str, str],
    config_dir: Path,
) -> list[str]:
    """Apply what matches the configuration that the user asked for; say what was set and why."""
    asked = replace(layers, values=copy.deepcopy(layers.values))
    _apply(asked, updates, "with", texts=texts)
    if not get(asked.values, "use_presets", True):
        return []
    notes = []
    for name in (asked.values["env"], arguments.algorithm):
        path = config_dir / "presets" / f"{name}.yaml"
        entries = _checked_presets(path, asked.values)
        for entry in matching_presets(entries, asked.values, arguments.environment):
            settings = dict(flatten(entry["set"]))
            _apply(layers, settings, str(path))
            notes.append(_note(entry, settings, updates))
    return notes


def _note(entry: Mapping[str, Any], settings: Mapping[str, Any], updates: Mapping[str, Any]) -> str:
    """What a preset set and why, with what the command line says instead."""
    effective = [f"{key}={value}" for key, value in settings.items() if key not in updates]
    given = [key for key in settings if key in updates]
    match = entry.get("match") or {}
    note = f"preset for {', '.join(f'{k}={v}' for k, v in match.items()) or 'every run'}: "
    note += ", ".join(effective) or "nothing"
    note += f" ({', '.join(given)} given on the command line instead)" if given else ""
    return f"{note}, because {entry['because']}"


# --------------------------------------------------------------------------------------------------
# All of it


def load_config(
    argv: Iterable[str], config_dir: Path = CONFIG_DIR, cwd: Path | None = None
) -> Config:
    """The checked configuration of a command line (`argv` without the program's name)."""
    arguments = parse_arguments(argv)
    if arguments.command == "help":
        return Config("help", arguments.algorithm, arguments.environment, {})
    layers = _base_layers(arguments.algorithm, arguments.environment, config_dir)
    updates, texts = _parse_overrides(arguments.overrides)
    notes = _apply_presets(layers, arguments, updates, texts, config_dir)
    _apply(layers, updates, "with", texts=texts)
    check_names(layers.values)
    values = absolute_paths(layers.values, typed=set(updates), cwd=cwd or Path.cwd())
    check_mode(values)
    return Config(
        arguments.command, arguments.algorithm, arguments.environment, values, tuple(notes)
    )


def check_names(values: Mapping[str, Any]) -> None:
    """ConfigError for a value that becomes part of a file's name and would lead elsewhere."""
    for key in ("name", "label", "map_name", "quality"):
        value = values.get(key)
        text = "" if value is None else str(value)
        if "/" in text or "\0" in text or text in (".", "..") or len(text.encode()) > NAME_BYTES:
            raise ConfigError(
                f"{key}: expected a name without '/' of at most {NAME_BYTES} bytes, since files "
                f"are named by it; found {text[:60]!r}"
            )
    length = len(f"{values.get('name')}{map_label(values)}".encode())
    if length > 2 * NAME_BYTES:
        raise ConfigError(
            f"name, map_name and quality: expected {2 * NAME_BYTES} bytes together, since a folder "
            f"is named by all of them; found {length}"
        )


def absolute_paths(values: Mapping[str, Any], typed: set[str], cwd: Path) -> dict[str, Any]:
    """A copy with the PATH_KEYS absolute: those the user typed from `cwd`, others from the root."""
    result = copy.deepcopy(dict(values))
    for key in PATH_KEYS:
        path = get(result, key)
        if path:
            base = cwd if key in typed else PROJECT_ROOT
            put(result, key, str(_resolved(base / expand_user(path, key), key)))
    return result


def _resolved(path: Path, key: str) -> Path:
    """The path without links; ConfigError, naming the key, where the system knows no such path."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a link to itself, a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{key}: no path can be {str(path)[:200]!r}: {reason}") from error


def expand_user(path: str | Path, key: str) -> Path:
    """The path with `~` spelled out; ConfigError, naming the key, for a `~user` who is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{key}: the home folder in '{path}' is not known: {Path(path).parts[0]} is no user of "
            "this machine. Write the whole path, or ./~name for a folder of that name"
        ) from error


@cache
def is_offline(algorithm: str) -> bool:
    """Whether it learns from data: an online learner says how often it trains as it plays."""
    return "train_interval" not in load_config([f"--config={algorithm}"]).values


def offline_algorithms() -> list[str]:
    """The registered algorithms that learn from data."""
    return [name for name in names("algs") if is_offline(name)]


def map_label(values: Mapping[str, Any]) -> str:
    """The map as it stands in names of results: with the data's quality for an offline run."""
    label = str(values.get("map_name") or values.get("env") or "none")
    if values.get("offline") and values.get("quality"):
        label = f"{label}_{values['quality']}"
    return re.sub(r"[^\w.+-]+", "_", label)


def sacred_folder(values: Mapping[str, Any]) -> Path:
    """Where Sacred keeps the runs of this algorithm on this map, one numbered folder each."""
    name = re.sub(r"[^\w.+-]+", "_", str(values["name"]))
    return Path(values["local_results_path"]) / "sacred" / name / map_label(values)


def to_yaml(values: Mapping[str, Any]) -> str:
    """The configuration as YAML, in the order of the files."""
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=100)
