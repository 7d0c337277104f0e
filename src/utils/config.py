"""From the words of the command line and the YAML files to one checked configuration.

Layers, each over the one before: `default.yaml`, `envs/ENV.yaml`, `algs/ALG.yaml`, the presets that
match (`presets/{env}.yaml`, then `presets/ALG.yaml`), the overrides after `with`. A key must be
declared in a YAML file before anything may override it, and keeps the type of its declaration.

Three top-level sections of a file describe the configuration and are no part of it:

- `_extends: NAME` reads the file NAME.yaml of the same folder first.
- `_rules: {key: {type: "int | null", choices: [..], min: 1, max: 9}}` says what the declared
  value does not say by itself: a type that differs from the value's own, the values allowed, the
  smallest and the largest.
- `maps: [..]` in an environment's file lists the maps that `env_args.map_name` may name.

Nothing here imports more than yaml, so that `--help` and an error answer at once.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from inspo.utils.errors import ConfigError, nearest
from inspo.utils.paths import CONFIG_DIR, PROJECT_ROOT

DEFAULT_ALGORITHM = "inspo"
DEFAULT_ENVIRONMENT = "smax_offline"
COMMANDS = ("run", "print_config", "help")

# Two names of one value; setting one sets the other.
ALIASES = {"map_name": "env_args.map_name"}
# Made absolute here, so that the rest of the program never asks what a relative path is relative
# to: one that the user types, to the folder they stand in; one from a YAML file, to the project.
PATH_KEYS = (
    "local_results_path",
    "datasets_dir",
    "dataset.path",
    "checkpoint_path",
    "resume",
    "collect.path",
)
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
WORDS = {"true": True, "false": False, "null": None, "none": None, "~": None}


@dataclass(frozen=True)
class Arguments:
    """The words of the command line. `overrides` are (dotted key, text) in the order given."""

    command: str = "run"
    algorithm: str = DEFAULT_ALGORITHM
    environment: str = DEFAULT_ENVIRONMENT
    overrides: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Config:
    """What a run is made of. `values` is the whole configuration, nested, complete and checked;
    `notes` says in words what was set by presets, and why."""

    command: str
    algorithm: str
    environment: str
    values: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class _Layers:
    """The configuration while it is being put together: values, rules, and who declared a key."""

    values: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------
# The command line


def parse_arguments(argv: Iterable[str]) -> Arguments:
    """Split the command line (without the program's name) into its parts."""
    words = list(argv)
    if any(word in ("-h", "--help", "help") for word in _before_with(words)):
        return Arguments(command="help")
    command, overrides = "run", []
    chosen: dict[str, str] = {}
    if words and words[0] in COMMANDS:
        command = words.pop(0)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag in ("--config", "--env-config"):
            if not equals:
                if not words or words[0].startswith("--") or words[0] == "with":
                    raise ConfigError(f"{flag} needs a name: {flag}=NAME")
                value = words.pop(0)
            if not value:
                raise ConfigError(f"{flag} needs a name: {flag}=NAME")
            if chosen.setdefault(flag, value) != value:
                raise ConfigError(f"{flag} is given twice: {chosen[flag]} and {value}")
        elif word == "with":
            overrides = [_split_override(item) for item in words]
            break
        else:
            raise ConfigError(_unexpected(word))
    return Arguments(
        command=command,
        algorithm=chosen.get("--config", DEFAULT_ALGORITHM),
        environment=chosen.get("--env-config", DEFAULT_ENVIRONMENT),
        overrides=tuple(overrides),
    )


def _before_with(words: list[str]) -> list[str]:
    return words[: words.index("with")] if "with" in words else words


def _unexpected(word: str) -> str:
    if word.startswith("-"):
        flag = word.partition("=")[0]
        hint = nearest(flag, ["--config", "--env-config", "--help"])
        return f"unknown option {flag}.{hint} (--help lists what there is)"
    if "=" in word:
        return f"'{word}' stands outside of 'with'. Write: with {word}"
    hint = nearest(word, [*COMMANDS, "with"])
    return f"unexpected word '{word}'.{hint} (--help shows how to write the command line)"


def _split_override(item: str) -> tuple[str, str]:
    key, equals, text = item.partition("=")
    if item in ("-h", "--help"):
        raise ConfigError(f"{item} stands after 'with'; put it before")
    if item.startswith("--"):
        raise ConfigError(f"'{item}' stands after 'with', where only key=value may; put it before")
    if not equals or not key.strip():
        raise ConfigError(f"'{item}' after 'with' is not of the form key=value")
    return key.strip(), text


def parse_value(text: str) -> Any:
    """A Python literal, else a YAML word (true, null, ..), else the text itself.

    >>> parse_value("1e6"), parse_value("true"), parse_value("2s3z"), parse_value("[1, 2]")
    (1000000.0, True, '2s3z', [1, 2])
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return WORDS.get(text.strip().lower(), text)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float | str | list | dict | None) else text


# --------------------------------------------------------------------------------------------------
# Files


class _Loader(yaml.SafeLoader):
    """YAML, but 1e6 is a number (YAML 1.1 wants 1.0e+6) and a key given twice is an error.

    What PyYAML answers with a Python error, as it does to the date 2020-13-45, is a ConfigError.
    """

    def construct_document(self, node):
        self.deep_construct = True  # an alias inside of what it names is an error then
        return super().construct_document(node)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            text = f"'{node.value[:60]}'" if isinstance(node, yaml.ScalarNode) else "what is there"
            kind = node.tag.rsplit(":", 1)[-1]
            raise ConfigError(
                f"{self._place(node)}: {text} cannot be read as {kind}: {error}. "
                "Put text in quotation marks"
            ) from error

    def _place(self, node) -> str:
        return f"{node.start_mark.name}, line {node.start_mark.line + 1}"

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(
                    f"{self._place(key_node)}: expected a name as the key, found "
                    f"a {type_name(key)}. Put text with braces or brackets in quotation marks"
                )
            if key in seen:
                raise ConfigError(
                    f"{node.start_mark.name}: the key '{key}' stands there twice "
                    f"(line {key_node.start_mark.line + 1})"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; an empty file is an empty mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        content = copy.deepcopy(_parse(text, str(path)))
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid: brackets are nested too deep") from error
    return {} if content is None else content


@cache
def _parse(text: str, name: str) -> Any:
    """The content of a YAML file's text, not to be changed: a grid reads the same files for each
    of its hundreds of cells, and parsing is nearly all of the time that a configuration takes."""
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from error


def names(kind: str, config_dir: Path = CONFIG_DIR) -> list[str]:
    """The algorithms (`algs`) or environments (`envs`) that have a file."""
    return sorted(path.stem for path in (config_dir / kind).glob("*.yaml"))


def one_liner(path: Path) -> str:
    """The first comment of a YAML file: what it is, in one line."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("#") and line.strip("# \n"):
                return line.strip("# \n")
            if line.strip() and not line.startswith("#"):
                break
    return ""


def _named_file(kind: str, name: str, config_dir: Path) -> Path:
    path = config_dir / kind / f"{name}.yaml"
    known = names(kind, config_dir)
    if name not in known:
        what = {"algs": "algorithm (--config)", "envs": "environment (--env-config)"}[kind]
        raise ConfigError(
            f"unknown {what} '{name}'.{nearest(name, known)} Known: {', '.join(known) or 'none'}"
        )
    return path


# --------------------------------------------------------------------------------------------------
# Nested dictionaries and dotted keys


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping is a leaf.

    >>> list(flatten({"a": {"b": 1}, "c": {}}))
    [('a.b', 1), ('c', {})]
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_MISSING = object()


def get(values: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key, or `default` where there is none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = node[part]
    return node


def has(values: Mapping[str, Any], key: str) -> bool:
    return get(values, key, _MISSING) is not _MISSING


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place, with the mappings on the way to it."""
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value


# --------------------------------------------------------------------------------------------------
# Types


def type_name(value: Any) -> str:
    if value is None:
        return "null"
    return next((name for name, kind in TYPES.items() if type(value) is kind), type(value).__name__)


def _allowed_types(declared: Any, rule: Mapping[str, Any]) -> list[str] | None:
    """Names of the types a key may have; None where anything goes."""
    if "type" in rule:
        return [part.strip() for part in str(rule["type"]).split("|")]
    return None if declared is None else [type_name(declared)]


def convert(key: str, value: Any, declared: Any, rule: Mapping[str, Any], text: str | None) -> Any:
    """`value` in the type of its declaration, or a ConfigError.

    Two conversions lose nothing and are made: an int where a float is declared, and a float of
    integral value (1e6) where an int is. Where a string is declared, a number on the command line
    is meant as its text, and so is none, unless null is allowed.
    """
    allowed = _allowed_types(declared, rule)
    found = type_name(value)
    if allowed is not None and found not in allowed:
        if found == "int" and "float" in allowed:
            value = float(value)
        elif found == "float" and "int" in allowed and value.is_integer():
            value = int(value)
        elif found in ("int", "float", "null") and "str" in allowed and text is not None:
            value = text
        else:
            raise ConfigError(
                f"{key}: expected {' or '.join(allowed)}, found {found} "
                f"({text if text is not None else value!r})"
            )
    if value is None:
        return value
    choices = rule.get("choices")
    if choices and value not in choices:
        listed = ", ".join(map(str, choices))
        raise ConfigError(
            f"{key}: unknown value '{value}'.{nearest(value, choices)} Known: {listed}"
        )
    if "min" in rule and not value >= rule["min"]:
        raise ConfigError(f"{key}: expected at least {rule['min']}, found {value}")
    if "max" in rule and not value <= rule["max"]:
        raise ConfigError(f"{key}: expected at most {rule['max']}, found {value}")
    return value


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
    *,
    declare: bool,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Put one layer, flat with dotted keys, over the values so far.

    `declare`: unknown keys are new ones of this layer's own; otherwise they are errors.
    """
    for key, value in _join_aliases(dict(updates), layers, source).items():
        text = (texts or {}).get(key)
        old = get(layers.values, key, _MISSING)
        try:
            if old is _MISSING:
                _check_parents(key, layers.values)
                if not declare:
                    raise _unknown_key(key, layers)
                value = convert(key, value, value, layers.rules.get(key, {}), text)
            elif isinstance(old, Mapping) and value == {}:
                continue
            else:
                value = convert(key, value, old, layers.rules.get(key, {}), text)
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


def _read_layer(layers: _Layers, path: Path) -> None:
    """One YAML file over the values so far, its rules and maps taken in."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found a {type_name(content)}")
    parent = content.pop("_extends", None)
    if parent is not None:
        if parent == path.stem or not path.with_name(f"{parent}.yaml").exists():
            raise ConfigError(f"{path}: _extends: there is no other file '{parent}.yaml' beside it")
        _read_layer(layers, path.with_name(f"{parent}.yaml"))
    for key, rule in (content.pop("_rules", None) or {}).items():
        layers.rules[key] = {**layers.rules.get(key, {}), **rule}
    maps = content.pop("maps", None)
    if maps:
        for key in ("map_name", "env_args.map_name"):
            layers.rules[key] = {**layers.rules.get(key, {}), "choices": list(maps)}
    _apply(layers, dict(flatten(content)), str(path), declare=True)


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
    return layers


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


def _read_presets(path: Path, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    entries = read_yaml(path) or []
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: expected a list of presets, found a {type_name(entries)}")
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or set(entry) - {"match", "because", "set"}:
            raise ConfigError(f"{where}: expected the keys match, because, set alone")
        if not entry.get("because") or not isinstance(entry.get("set"), dict):
            raise ConfigError(f"{where}: expected a reason (because) and keys to set (set)")
        for key in entry.get("match") or {}:
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
    asked = copy.deepcopy(layers)
    _apply(asked, updates, "with", declare=False, texts=texts)
    if not get(asked.values, "use_presets", True):
        return []
    notes = []
    for name in (asked.values["env"], arguments.algorithm):
        path = config_dir / "presets" / f"{name}.yaml"
        entries = _read_presets(path, asked.values)
        for entry in matching_presets(entries, asked.values, arguments.environment):
            settings = dict(flatten(entry["set"]))
            _apply(layers, settings, str(path), declare=False)
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
    _apply(layers, updates, "with", declare=False, texts=texts)
    values = absolute_paths(layers.values, typed=set(updates), cwd=cwd or Path.cwd())
    return Config(
        arguments.command, arguments.algorithm, arguments.environment, values, tuple(notes)
    )


def absolute_paths(values: Mapping[str, Any], typed: set[str], cwd: Path) -> dict[str, Any]:
    """A copy with the PATH_KEYS absolute: those the user typed from `cwd`, others from the root."""
    values = copy.deepcopy(dict(values))
    for key in PATH_KEYS:
        path = get(values, key)
        if path:
            base = cwd if key in typed else PROJECT_ROOT
            put(values, key, str((base / expand_user(path, key)).resolve()))
    return values


def expand_user(path: str | Path, key: str) -> Path:
    """The path with `~` spelled out; ConfigError, naming the key, for a `~user` who is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{key}: the home folder in '{path}' is not known: {Path(path).parts[0]} is no user of "
            "this machine. Write the whole path, or ./~name for a folder of that name"
        ) from error


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


def help_text(config_dir: Path = CONFIG_DIR) -> str:
    """What `--help` prints."""

    def listing(kind: str) -> str:
        found = names(kind, config_dir)
        width = max(map(len, found), default=0)
        lines = [
            f"  {name:<{width}}  {one_liner(config_dir / kind / f'{name}.yaml')}".rstrip()
            for name in found
        ]
        return "\n".join(lines) or "  none"

    return HELP.format(
        algorithm=DEFAULT_ALGORITHM,
        environment=DEFAULT_ENVIRONMENT,
        algorithms=listing("algs"),
        environments=listing("envs"),
    )


HELP = """\
Offline multi-agent reinforcement learning: collect data, train on it, test.

usage: ./run.sh [print_config] [--config=ALG] [--env-config=ENV] [with key=value ...]
       (the same as: python src/main.py ... in the project's environment)

  --config=ALG        the algorithm, a file of src/config/algs/     (default: {algorithm})
  --env-config=ENV    the environment, a file of src/config/envs/   (default: {environment})
  with key=value ...  override keys, nested ones with a dot: with batch_size=64 dataset.path=my.h5
  print_config        print the configuration that would run, and stop
  --help              this text

examples:
  ./run.sh                                                    the main job: train, test, compare
  ./run.sh --config=inspo with map_name=2s3z quality=medium seed=1
  ./run.sh --config=bc with map_name=2s3z dataset.path=path/to/data.h5
  ./run.sh with resume=results/models/RUN                     go on after an interruption
  ./run.sh with evaluate=True checkpoint_path=results/models/RUN   test a saved policy
  ./run.sh print_config --config=bc                           every key of a run, and its value

algorithms:
{algorithms}

environments:
{environments}

main keys (all of them, with comments: src/config/default.yaml and the files above):
  map_name            the map (the same as env_args.map_name)
  quality             which dataset of the map: datasets/ENV/MAP_QUALITY.h5
  dataset.path        a dataset file of your own instead
  seed                one number fixes a run; null draws one and records it
  t_max, batch_size   how long to train, and on how many episodes at a time
  test_nepisode       episodes of a test; 0 trains offline with no simulator at all
  use_cuda            True: the GPU, if there is one
  use_presets         False: leave out what src/config/presets/ sets for this map and quality
  checkpoint_path, load_step, resume, evaluate
                      saved runs: a run's model folder, and the step in it (0: the last)

results:
  results/sacred/ALG/MAP/N/   configuration, metrics and log of run number N
  results/models/RUN/STEP/    checkpoints
  results/tb_logs/RUN/        TensorBoard, with use_tensorboard=True
"""
