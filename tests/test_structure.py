"""Sizes that a reader can hold in mind."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("paper/**/*.py")])
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 450, 60


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def long_functions(source: str) -> list[str]:
    """Those with too many lines, but for parsers of the command line, which are lists."""
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and lines(node) > LINES_OF_A_FUNCTION
        and "Parser(" not in ast.unparse(node)
    ]
    return [f"{node.name}: {lines(node)} lines" for node in found]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= LINES_OF_A_FILE
    assert long_functions(source) == []


def test_a_long_function_is_seen():
    body = "    pass\n" * LINES_OF_A_FUNCTION
    assert long_functions(f"class A:\n  def f():\n{body}") == ["f: 61 lines"]
    assert long_functions(f"def parse():\n    ArgumentParser()\n{body}") == []
