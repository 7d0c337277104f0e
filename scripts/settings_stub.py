#!/usr/bin/env python
"""Write `src/utils/settings.pyi` from the keys that `src/config/` declares.

    python scripts/settings_stub.py           write it
    python scripts/settings_stub.py --check   exit status 1 if it is not up to date

The type checker then knows every key of a configuration and its type, and finds a misspelt one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "package"))

from inspo.utils.keys import declare, type_name
from inspo.utils.nested import flatten
from inspo.utils.paths import CONFIG_DIR
from inspo.utils.yaml_files import read_comments, read_yaml

STUB = ROOT / "src" / "utils" / "settings.pyi"
GROUPS = {"env_args"}  # an environment's own keyword arguments: any name, any value
NEVER_NULL = {"env", "name", "seed"}  # null in a file, but not once a run starts
FACTS = {
    "device": "str", "unique_token": "str", "n_agents": "int", "n_actions": "int",
    "obs_shape": "int", "state_shape": "int", "episode_limit": "int",
}  # fmt: skip
PYTHON = {"null": "None", "list": "list[Any]", "dict": "dict[str, Any]"}
HEAD = '''\
"""Written by scripts/settings_stub.py from src/config/*.yaml: the keys of a run and their types."""

from collections.abc import Iterator, Mapping
from typing import Any

class Settings(Mapping[str, Any]):
    def __init__(
        self, values: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None: ...
    def with_facts(self, **facts: Any) -> Settings: ...
    def as_dict(self) -> dict[str, Any]: ...
    def __getitem__(self, key: str) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
'''


def declared() -> dict[str, set[str]]:
    """Dotted key -> the types that the files declare for it."""
    types: dict[str, set[str]] = {}
    for path in [CONFIG_DIR / "default.yaml", *sorted(CONFIG_DIR.glob("[ae]*s/*.yaml"))]:
        content = {k: v for k, v in read_yaml(path).items() if k not in ("_extends", "maps")}
        comments = read_comments(path)
        for name, value in flatten(content):
            key = declare(name, value, comments.get(name, ""), str(path))
            found = key.types if key.types or name in types else (type_name(value),)
            types.setdefault(name, set()).update(found)
    return types


def annotation(types: set[str]) -> str:
    names = sorted(types - {"null"}) + (["null"] if "null" in types else [])
    if names == ["null"]:
        return "Any"
    return " | ".join(PYTHON.get(name, name) for name in names)


def stub() -> str:
    types = declared()
    groups: dict[str, dict[str, str]] = {}
    keys = dict(FACTS)
    for key, found in types.items():
        group, dot, rest = key.partition(".")
        if dot and group not in GROUPS:
            groups.setdefault(group, {})[rest] = annotation(found)
        elif not dot:
            keys[key] = annotation(found)
    classes = {group: f"{group.title().replace('_', '')}Settings" for group in groups}
    keys |= {key: keys[key].removesuffix(" | None") for key in NEVER_NULL}
    keys |= classes | dict.fromkeys(GROUPS, "Mapping[str, Any]")
    parts = [HEAD + lines(keys)]
    parts += [f"class {classes[g]}(Mapping[str, Any]):\n" + mapping() + lines(k)
              for g, k in groups.items()]  # fmt: skip
    return "\n".join(parts)


def mapping() -> str:
    return HEAD[HEAD.index("    def __getitem__") :]


def lines(keys: Mapping[str, str]) -> str:
    return "".join(f"    {key}: {kind}\n" for key, kind in sorted(keys.items()))


def main(argv: list[str]) -> int:
    text = stub()
    if argv == ["--check"]:
        if STUB.is_file() and STUB.read_text(encoding="utf-8") == text:
            return 0
        print(f"{STUB.relative_to(ROOT)} is not what the keys in src/config say; "
              "write it with python scripts/settings_stub.py", file=sys.stderr)  # fmt: skip
        return 1
    STUB.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
