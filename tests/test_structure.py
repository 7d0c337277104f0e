"""Sizes that a reader can hold in mind, and links that lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("paper/**/*.py")])
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```.*?^```|\$`.*?`\$|`[^`\n]*`", re.M | re.S)  # has brackets of its own
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
        and "ArgumentParser(" not in ast.unparse(node)
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


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links to files and headings of this project that are not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8"))):
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        if re.match(r"[a-z]+:", target):
            continue
        if not path.exists() or (anchor and anchor not in anchors(path.read_text("utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n[](page.md) [](#a-b-c) [](http://x) `[](x)` [](none) [](#d)\n")
    assert broken_links(page) == ["none", "#d"]
