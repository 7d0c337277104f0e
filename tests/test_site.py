"""README and docs/ against the program (links, commands, keys, examples), and the site of them."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspo.utils import config
from inspo.utils.errors import UserError
from inspo.utils.paths import CONFIG_DIR
from inspo.utils.yaml_files import read_comments

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
EXTENDING = ROOT / "docs/extending.md"
PAGES = sorted([README, *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
EXAMPLE = re.compile(
    r"`(src/[^`]+\.(?:py|yaml))`((?!```|`src/).)*?```(?:python|yaml)\n(.*?)^```", re.M | re.S
)
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# Links


def prose(page: Path) -> str:
    """The page without code and formulas, which have brackets of their own."""
    return re.sub(r"\$`.*?`\$|`[^`\n]*`", "", FENCE.sub("", page.read_text()), flags=re.S)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


@by_page
def test_relative_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One heading\n[a](b.md) [c](#one-heading) [d](#two) [e](http://f)\n")
    assert broken_links(page) == ["b.md", "#two"]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r"^ +- (?:[^:\n]+: )?(\w+\.md)", navigation, re.M)
    assert sorted(listed) == sorted(["index.md", *(p.name for p in PAGES if p != README)])


# Commands and keys

PLACEHOLDER = re.compile(r"\bALG\b|\bGRID\b|\bENV\b|\bARGS\b|\bCOMMAND\b|…|\.\.\.")
PROGRAMS = ("python", "./run.sh", "./test.sh", "docker/run.sh", "docker/build.sh", "inspo", "pip")


def commands(text: str) -> list[str]:
    """The commands of fenced blocks and of code spans, without their comments."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "bash", "sh")]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [line for line in lines if re.match(r"[\w./-]+ ", line) and is_program(line.split()[0])]


def is_program(word: str) -> bool:
    return word in PROGRAMS or word.startswith("inspo-")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of src/config with the YAML files of docs/extending.md, and code that reads them."""
    folder = tmp_path_factory.mktemp("docs") / "config"
    shutil.copytree(CONFIG_DIR, folder)
    found = [(name, body) for name, _, body in EXAMPLE.findall(EXTENDING.read_text())]
    for name, content in found:
        if name.startswith("src/config/"):
            (folder / name.removeprefix("src/config/")).write_text(content)
    names = re.findall(r"\w+", "".join(body for name, body in found if name.endswith(".py")))
    known = config.names_read() | set(names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "names_read", lambda: known)
        yield folder


def check_script(name: str, words: list[str], config_dir: Path) -> None:
    """An error if a script of src/ would not take these words."""
    if name == "main" or (name == "dataset" and words[:1] == ["collect"]):
        config.load_config(words[name == "dataset" :], config_dir=config_dir)
        return
    parsed = importlib.import_module(f"inspo.{name}").parse(words)
    if name == "reproduce":
        for algorithm in parsed.algorithms or ():
            assert (config_dir / f"algs/{algorithm}.yaml").exists() or algorithm == "control"


def check(words: list[str], config_dir: Path) -> None:
    """An error, or a failed assertion, if the program would not take this command line."""
    program, *words = words
    if program == "docker/run.sh":
        return check(words[1:] if words[0] == "--" else ["./run.sh", *words], config_dir)
    if program == "pip":
        for requirements in re.findall(r"(?<=-r )\S+", " ".join(words)):
            assert (ROOT / requirements).exists()
        return
    if program.startswith("inspo"):
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        script = ROOT / "src" / f"{scripts[program].partition(':')[0].split('.')[-1]}.py"
    elif program == "python" and words[0] == "-m":
        assert words[1] == "mkdocs" and (ROOT / "mkdocs.yml").exists()
        return
    elif program in ("python", "./run.sh", "./test.sh", "docker/build.sh"):
        script = ROOT / (words.pop(0) if program == "python" else program)
    else:
        return  # another program, in the image
    assert script.exists(), script
    if program != "./run.sh" and script.parent != ROOT / "src":
        for word in words[: words.index("--")] if "--" in words else words:
            assert not word.startswith("--") or re.search(rf"{word}\b", script.read_text()), word
    elif "--help" not in words and words:
        check_script("main" if program == "./run.sh" else script.stem, words, config_dir)


@by_page
def test_commands_are_accepted(page: Path, examples: Path) -> None:
    for line in dict.fromkeys(commands(page.read_text())):
        if not PLACEHOLDER.search(line):
            try:
                check(shlex.split(line), examples)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{line}: {error!r}") from error


def test_a_wrong_command_is_found(examples: Path) -> None:
    for line, error in (
        ("inspo --config=rwbc with batch_sice=3", UserError),
        ("docker/run.sh -- python src/main.py --config=none_such", UserError),
        ("python src/report.py --no-such-option results", SystemExit),
        ("python src/no_such.py", AssertionError),
        ("docker/build.sh --no-such-option", AssertionError),
        ("inspo-none --help", KeyError),
    ):
        with pytest.raises(error):
            check(commands(f"`{line}`")[0].split(), examples)


def declared() -> set[str]:
    """Every key of the YAML files, dotted; those of an environment without `env_args.` as well."""
    keys = {key for path in CONFIG_DIR.glob("**/*.yaml") for key in read_comments(path)}
    return keys | {key.removeprefix("env_args.") for key in keys}


@by_page
def test_keys_exist_and_code_is_python(page: Path) -> None:
    """What stands as `key=value` in a line of text is a key of some configuration."""
    text = re.sub(r"(?s)\$`.*?`\$", "", FENCE.sub("", page.read_text()))
    spans = re.findall(r"`([^`\n]+)`", text)
    words = [word for span in spans if "(" not in span for word in span.split()]
    keys = {m[1] for word in words if (m := re.match(r"([a-z][a-z0-9_.]*)=(?!=)", word))}
    assert keys - declared() - {"key"} == set()
    for language, body in FENCE.findall(page.read_text()):
        if language == "python":
            ast.parse(body)


# Examples


FOLLOWED = """
import sys

import h5py, numpy as np
from inspo.main import main
from inspo.offline import load_dataset

words = ["test_nepisode=2", "final_test_nepisode=2", "use_progress_bar=False", "t_max=200"]
online = ["--config=qmix", "--env-config=rendezvous", "with", "batch_size=4", *words]
if __name__ == "__main__":
    assert main(["--config=rwbc", "--env-config=matrix_offline", "with", "quality=b", *words]) == 0
    assert main([*online, "batch_size_run=2"]) == 0
    assert main([*online, "runner=episode", "batch_size_run=1"]) == 0
    assert main([*online, "runner=vector"]) == 0
    with h5py.File("datasets/matrix/xor_b.h5") as file:
        np.savez("data.npz", **{key: file[key][()] for key in file})
    found, made = load_dataset("data.npz"), load_dataset("datasets/matrix/xor_b.h5")
    assert "npz" in found.metadata.source
    assert found.metadata.content_hash == made.metadata.content_hash
"""
REGISTERED = {
    "src/envs/__init__.py": """
def _rendezvous_vector(**kwargs):
    from inspo.envs.rendezvous_vector import RendezvousVectorEnv

    return RendezvousVectorEnv(**kwargs)


VECTOR_REGISTRY["rendezvous"] = _rendezvous_vector
""",
    "src/offline/formats/__init__.py": """
from inspo.offline.formats import npz

REGISTRY[npz.NAME] = npz
""",
}


def test_the_examples_of_extending_work_as_they_stand(tmp_path: Path) -> None:
    """Algorithm, environment (one, and N in one process), preset and format, in a copy of src/."""
    ignored = shutil.ignore_patterns("__pycache__", "policies")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)
    (tmp_path / "pyproject.toml").touch()  # a checkout: data and results stay in it
    (tmp_path / "package").mkdir()
    (tmp_path / "package/inspo").symlink_to("../src")
    files = [(name, body) for name, _, body in EXAMPLE.findall(EXTENDING.read_text())]
    for name, body in [*files, *REGISTERED.items()]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with open(tmp_path / name, "a") as file:
            file.write(f"\n\n{body}" if name.endswith("__init__.py") else body)
    (tmp_path / "followed.py").write_text(FOLLOWED)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "package"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "followed.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


# The site


def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    for module in ("mkdocs", "mkdocstrings", "material", "latex2mathml"):
        pytest.importorskip(module, reason="pip install -r requirements-docs.txt")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*.html")}
    loaded = r"<(?:script|img|link rel=\"(?:stylesheet|icon|preconnect)\")[^>]*(?:src|href)=\"http"
    for name, text in pages.items():
        assert not re.search(loaded, text), name
        prose = re.sub(r"(?s)<code.*?</code>", "", text)
        assert ".. math::" not in prose and ":math:" not in prose and "$$" not in prose, name
    learners = pages[Path("reference/learners/index.html")]
    assert learners.count("<math") >= 20 and "InSPOLearner" in learners
