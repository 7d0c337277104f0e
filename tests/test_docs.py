"""The commands and the code of the documentation, read by the programs that they name."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
from inspo import dataset, plugin, reproduce, sweep
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
    return [line for line in lines if re.match(r"python |\./(run|test)\.sh|inspo-\w+ ", line)]


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
    program, *words = shlex.split(re.sub(r"^inspo-(\w+)", r"python src/\1.py", line))
    if program == "python" and words[0] == "-m":
        assert (ROOT / "src" / words[1].replace(".", "/")).with_suffix(".py").exists()
        return
    script = ROOT / (words.pop(0) if program == "python" else program)
    assert script.exists()
    if PLACEHOLDER.search(line) or not words:
        return
    if script.name in ("main.py", "run.sh"):
        load_config(words, config_dir=examples)
    elif script.name == "reproduce.py":
        if "--help" not in words:
            for name in reproduce.parse(words)[1].algorithms or ():
                assert (examples / "algs" / f"{name}.yaml").exists() or name == "control"
    elif script.name in ("plugin.py", "sweep.py"):
        if "--help" not in words:
            {"plugin.py": plugin, "sweep.py": sweep}[script.name].parse(words)
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
