"""The documentation against the program: commands, links, comments, the table of imports."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
from inspo import dataset, reproduce, sweep
from inspo.utils.config import load_config
from inspo.utils.errors import UserError
from inspo.utils.paths import CONFIG_DIR

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
PLACEHOLDER = re.compile(r"\bALG\b|\bENV\b|\bARGS\b|\bCOMMAND\b|…|\.\.\.")


def commands(text: str) -> list[str]:
    """The commands of fenced blocks and of code spans, without their comments."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "bash", "sh")]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines = [re.sub(r"\s+#.*", "", re.sub(r"^cd \w+ && ", "", line)).strip() for line in lines]
    return [line for line in lines if line.startswith(("python ", "./run.sh", "./test.sh"))]


CASES = [(page, line) for page in PAGES for line in dict.fromkeys(commands(page.read_text()))]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A copy of src/config with the YAML files that docs/extending.md tells its reader to write."""
    folder = tmp_path_factory.mktemp("docs") / "config"
    shutil.copytree(CONFIG_DIR, folder)
    text = (ROOT / "docs/extending.md").read_text()
    block = r"`src/config/(\S+?\.yaml)`((?!```).)*?```yaml\n(.*?)^```"
    found = [(name, body) for name, _, body in re.findall(block, text, re.M | re.S)]
    assert found
    for name, content in found:
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(("page", "line"), CASES, ids=[f"{p.name}: {c}" for p, c in CASES])
def test_commands_name_what_there_is(page, line, examples):
    program, *words = shlex.split(line)
    if program == "python" and words[0] == "-m":
        assert (ROOT / "src" / words[1].replace(".", "/")).with_suffix(".py").exists()
        return
    script = ROOT / (words.pop(0) if program == "python" else program)
    assert script.exists()
    if PLACEHOLDER.search(line):
        return
    if script.name in ("main.py", "run.sh"):
        load_config(words, config_dir=examples)
    elif script.name == "reproduce.py":
        if "--help" not in words:
            for name in reproduce.parse(words).algorithms or ():
                assert (examples / "algs" / f"{name}.yaml").exists() or name == "control"
    elif script.name == "sweep.py":
        if "--help" not in words:
            sweep.parse(words)
    elif script.name == "dataset.py":
        if words[:1] == ["collect"]:
            load_config(words[1:], config_dir=examples)
        elif "--help" not in words:
            dataset.parse(words)
    else:
        for word in words:
            assert not word.startswith("--") or f'"{word}"' in script.read_text(), word


def test_a_command_that_is_wrong_is_seen(examples):
    with pytest.raises(UserError, match="batch_sice"):
        load_config(["--config=rwbc", "with", "batch_sice=3"], config_dir=examples)
    assert len(CASES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_is_python(page):
    for language, body in FENCE.findall(page.read_text()):
        if language == "python":
            ast.parse(body)


def prose(page: Path) -> str:
    """The page without code and formulas, which have brackets of their own."""
    return re.sub(r"\$`.*?`\$|`[^`\n]*`", "", FENCE.sub("", page.read_text()), flags=re.S)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize(
    "path", [CONFIG_DIR / "default.yaml", *sorted(CONFIG_DIR.glob("algs/*.yaml"))],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_every_key_has_a_comment(path):
    """In its line or, for what needs more room, in the line above. A group speaks by its keys."""
    above = ""
    for line in path.read_text().split("\n_rules:")[0].splitlines():
        is_value = re.match(r" *\w+: +[^#\s]", line)
        assert not is_value or "#" in line or above.strip().startswith("# "), line
        above = line


# The walls of docs/architecture.md

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
ROOMS = {path.stem: path for path in sorted((ROOT / "src").iterdir()) if path.stem[0] not in "_."}
ROOMS.pop("config")  # no Python


def imports(room: Path) -> set[str]:
    """The other rooms that a room imports, anywhere in its files."""
    found = set()
    for file in [room] if room.is_file() else room.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return (found & set(ROOMS)) - {room.stem}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_what_the_page_says(room):
    row = re.search(rf"^\| `{room}` \|(.*)\|$", ARCHITECTURE, re.M)
    assert row, f"{room} has no row"
    assert imports(ROOMS[room]) == set(re.findall(r"`(\w+)`", row[1].split("(")[0])) & set(ROOMS)
    assert re.search(rf"^ +{room}(/|\.py)\s", ARCHITECTURE, re.M), f"{room} is in no list of rooms"
