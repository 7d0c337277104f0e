"""Reading YAML: numbers as people write them, one clear error for each fault, and the comments."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from inspo.utils.errors import ConfigError

CONTINUES = 8  # columns by which a comment line must be indented more than its key to belong to it


class _Loader(yaml.SafeLoader):
    """YAML, but 1e6 is a number (YAML 1.1 wants 1.0e+6) and a key given twice is an error.

    What PyYAML answers with a Python error, as it does to the date 2020-13-45, is a ConfigError.
    """

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # an alias inside of what it names is an error then
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            text = f"'{node.value[:60]}'" if isinstance(node, yaml.ScalarNode) else "what is there"
            kind = node.tag.rsplit(":", 1)[-1]
            raise ConfigError(
                f"{_place(node)}: {text} cannot be read as {kind}: {error}. "
                "Put text in quotation marks"
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(
                    f"{_place(key_node)}: expected a name as the key, found "
                    f"a {type(key).__name__}. Put text with braces or brackets in quotation marks"
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


def _place(node: yaml.Node) -> str:
    return f"{node.start_mark.name}, line {node.start_mark.line + 1}"


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; an empty file is an empty mapping."""
    content = copy.deepcopy(_parse(_text(path), str(path))[0])
    return {} if content is None else content


def read_comments(path: Path) -> dict[str, str]:
    """Dotted key -> the comment beside it, with the comment lines that go on below it.

    A comment line goes on if it is indented by 8 columns more than the key.
    """
    text = _text(path)
    root = _parse(text, str(path))[1]
    if not isinstance(root, yaml.MappingNode):
        return {}
    lines = text.splitlines()
    return {key: _comment(lines, key_node, node) for key, key_node, node in _leaves(root)}


def _text(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


@cache  # a grid reads the same files for each of its hundreds of cells
def _parse(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """The content of a YAML text and its node, neither to be changed."""
    try:
        loader = _Loader(text)
        loader.name = name
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: not valid: brackets are nested too deep") from error


def _leaves(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    for key_node, value in node.value:
        key = f"{prefix}{key_node.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, key_node, value


def _comment(lines: list[str], key: yaml.Node, value: yaml.Node) -> str:
    line = value.end_mark.line
    if line >= len(lines):
        return ""
    parts = [lines[line][value.end_mark.column :].partition("#")[2].strip()]
    for further in lines[line + 1 :]:
        stripped = further.lstrip()
        indent = len(further) - len(stripped)
        if not stripped.startswith("#") or indent < key.start_mark.column + CONTINUES:
            break
        parts.append(stripped.lstrip("# ").rstrip())
    return " ".join(part for part in parts if part)
