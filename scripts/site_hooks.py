"""What `mkdocs build` does for this project beside the usual.

- Formulas become MathML, which browsers draw without a script: `.. math::` and :math:`x` in
  docstrings, ```math blocks and $`x`$ in the pages.
- README.md is the first page, and what pages link to outside of docs/ (tables, pictures, raw
  values) is copied into the site.
- The reference has a page for each package of src/, from its docstrings; nothing is imported.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")


# --------------------------------------------------------------------------------------------------
# Formulas


# What the converter does not know, or marks in a way that browsers no longer read.
SPELLINGS = {r"\arg": r"\operatorname{arg}", r"\mathbb E": "𝔼", r"\mathcal H": "ℋ"}
UNKNOWN = re.compile(r"\\[a-zA-Z]+|double-struck|script|fraktur")


def mathml(tex: str, display: str = "inline") -> str:
    """MathML of a formula. ValueError for a command that would not be drawn."""
    source = tex = tex.strip()
    for spelling, other in SPELLINGS.items():
        tex = tex.replace(spelling, other)
    if display == "block" and "\\begin{" not in tex and ("\\\\" in tex or "&" in tex):
        tex = rf"\begin{{split}}{tex}\end{{split}}"  # as Sphinx reads `.. math::`
    markup = convert(tex, display=display)
    if unknown := UNKNOWN.findall(re.sub(r"scriptlevel", "", markup)):
        raise ValueError(f"{', '.join(unknown)} in the formula {source}")
    markup = re.sub(r'columnalign="(\w+)"', r'style="text-align: \1"', markup)
    return f'<div class="formula">{markup}</div>' if display == "block" else markup


class InlineFormula(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


class DirectiveFormula(BlockProcessor):
    """`.. math::`, with the formula in its line, in the indented lines after it, or both."""

    def test(self, parent: ElementTree.Element, block: str) -> bool:
        return block.lstrip().startswith(".. math::")

    def run(self, parent: ElementTree.Element, blocks: list[str]) -> None:
        tex = blocks.pop(0).lstrip().removeprefix(".. math::")
        while not tex.strip() and blocks:
            tex = blocks.pop(0)
        ElementTree.SubElement(parent, "p").text = self.parser.md.htmlStash.store(
            mathml(tex, "block")
        )


class ListAfterText(Preprocessor):
    """A list may follow a line of text at once, as on GitHub and in docstrings."""

    def run(self, lines: list[str]) -> list[str]:
        text = re.compile(r"^(?![-*] |\d+\. |[|>#\s]).*\n(?=[-*] )", re.M)
        return text.sub(r"\g<0>\n", "\n".join(lines)).split("\n")


class Dialect(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(ListAfterText(md), "list_after_text", 24)  # fences are out at 25
        md.parser.blockprocessors.register(DirectiveFormula(md.parser), "math_directive", 95)
        for name, pattern in {"role": r"(?s):math:`(.+?)`", "dollar": r"(?s)\$`(.+?)`\$"}.items():
            md.inlinePatterns.register(InlineFormula(pattern, md), f"math_{name}", 200)


def math_fence(source: str, *_: Any, **__: Any) -> str:
    return mathml(source, "block")


def github_anchor(heading: str, separator: str = "-") -> str:
    """The anchor that GitHub gives to a heading, so that links work in both places."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


# --------------------------------------------------------------------------------------------------
# Pages that are not in docs/


def site_path(path: str) -> str | None:
    """Where a file of the repository stands in the site; None for a folder."""
    if path == "README.md":
        return "index.md"
    if path.startswith("src/") and path.endswith(".py"):
        return f"reference/{path.split('/')[1].removesuffix('.py')}.md"
    return None if (ROOT / path).is_dir() else path.removeprefix("docs/")


def repository_path(page: str) -> str:
    """The file of the repository that a page of the site was made of."""
    if page == "index.md":
        return "README.md"
    return f"docs/{page}" if (ROOT / "docs" / page).exists() else page


def linked(page: str, text: str) -> set[str]:
    """The files of the repository, outside of docs/, that a page links to."""
    folder = posixpath.dirname(repository_path(page))
    targets = {posixpath.normpath(f"{folder}/{m[1]}") for m in LINK.finditer(FENCE.sub("", text))}
    return {t.lstrip("/") for t in targets if (ROOT / t.lstrip("/")).is_file()}


def reference_pages() -> dict[str, str]:
    """name -> Markdown: a page for each package of src/, one for what stands beside them."""
    pages: dict[str, list[str]] = {}
    for file in sorted((ROOT / "package/inspo").rglob("*.py")):
        if not (file.parent / "__init__.py").exists():
            continue
        module = file.relative_to(ROOT / "package").with_suffix("").parts
        package = module[1] if len(module) > 2 else "inspo"
        name = ".".join(module).removesuffix(".__init__")
        pages.setdefault(package, []).append(f"::: {name}\n")
    return {name: f"# {name}\n\n" + "\n".join(lines) for name, lines in sorted(pages.items())}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(Dialect())
    config.mdx_configs["toc"] = {"permalink": True, "slugify": github_anchor}
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "math", "format": math_fence}]
    }
    reference = [{name: f"reference/{name}.md"} for name in reference_pages()]
    config.nav.append({"Reference": reference})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in reference_pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    todo = [file for file in files if file.src_uri.endswith(".md")]
    while todo:
        page = todo.pop()
        for path in linked(page.src_uri, page.content_string):
            uri = site_path(path)
            if uri and files.get_file_from_path(uri) is None:
                file = File.generated(config, uri, abs_src_path=str(ROOT / path))
                files.append(file)
                todo += [file] if uri.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links as they are in the repository -> links in the site. A folder's becomes plain text."""
    here = page.file.src_uri
    folder = posixpath.dirname(repository_path(here))

    def replaced(match: re.Match[str]) -> str:
        label, target, anchor = match.groups()
        path = os.path.normpath(f"{folder}/{target}").lstrip("/")
        uri = site_path(path)
        if uri is None:
            return label
        return f"[{label}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor or ''})"

    link = re.compile(r"\[([^\[\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    return "".join(part if i % 2 else link.sub(replaced, part) for i, part in enumerate(parts))
