"""run.sh and test.sh with stubs for Python and uv: which Python is taken, and what is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "sh", "cat", "cksum", "dirname", "rm", "mkdir", "cp", "flock")
# Answers as a Python of $version does to what the scripts ask it, and notes the rest. `-m venv`
# copies it; with its own name in FAIL, or that of a module, it fails.
PYTHON = """#!/bin/sh
version={version}
case "$1 $2" in
"-c import"*) echo "$version"; exit ;;
"-m venv") case "$FAIL" in *venv*) exit 1 ;; esac
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/lint-imports"
    echo "venv by $version" >>"$NOTES"; exit ;;
"-m pip") [ "$3" = --version ] && exit ;;
esac
echo "$@" >>"$NOTES"
for word in $FAIL; do case " $* " in *" $word "*) exit 1 ;; esac; done
exit 0
"""
UV = """#!/bin/sh
echo "uv $*" >>"$NOTES"
case "$FAIL" in *uv*) exit 1 ;; esac
for last; do :; done
mkdir -p "$last/bin" && cp "$STUBS/.python" "$last/bin/python"
"""


class Machine:
    """A copy of the scripts, and a PATH with these tools and no others."""

    def __init__(self, folder: Path) -> None:
        self.project, self.stubs, self.notes = folder / "project", folder / "bin", folder / "notes"
        for name in ("run.sh", "test.sh", ".ci/run", "scripts/environment.sh"):
            (self.project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.project / name)
        (self.project / "requirements.txt").write_text("torch\n")
        (self.project / "requirements-dev.txt").write_text("pytest\n")
        self.stubs.mkdir()
        for tool in filter(shutil.which, TOOLS):
            (self.stubs / tool).symlink_to(shutil.which(tool))
        self.add(".python", "3.11")  # what uv brings

    def add(self, name: str, version: str | None = None) -> None:
        stub = self.stubs / name
        stub.write_text(UV if version is None else PYTHON.format(version=version))
        stub.chmod(0o755)

    def __call__(
        self, script: str = "run.sh", *args: str, **env: str
    ) -> tuple[int, str, list[str]]:
        """Exit status, stderr, and what was started, in order."""
        self.notes.unlink(missing_ok=True)
        env = {"PATH": str(self.stubs), "STUBS": str(self.stubs), "NOTES": str(self.notes), **env}
        done = subprocess.run(
            [self.project / script, *args], env=env, capture_output=True, text=True
        )
        notes = self.notes.read_text().splitlines() if self.notes.exists() else []
        notes = [note.replace(f"{self.project}/", "") for note in notes]
        return done.returncode, done.stderr, notes


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


INSTALL = "-m pip install --disable-pip-version-check --quiet -r requirements.txt"


@pytest.mark.parametrize(
    ("stubs", "taken"),
    [
        ({"python3.11": "3.11"}, "3.11"),
        ({"python3.13": "3.13"}, "3.13"),
        ({"python3.12": "3.12", "python3.11": "3.11"}, "3.11"),
        ({"python3.11": "3.8", "python3": "3.14", "python": "3.13"}, "3.13"),
    ],
)
def test_the_first_python_that_fits_is_taken(machine, stubs, taken):
    for name, version in stubs.items():
        machine.add(name, version)
    machine.add("uv")  # not asked
    status, _, notes = machine("run.sh", "--config=bc")
    assert status == 0
    assert notes == [f"venv by {taken}", INSTALL, "src/main.py --config=bc"]
    assert machine("run.sh", "x")[2] == ["src/main.py x"]  # a second time nothing is installed
    with (machine.project / "requirements.txt").open("a") as file:
        file.write("numpy\n")
    assert machine("run.sh", "x")[2] == [INSTALL, "src/main.py x"]


def test_python_can_be_named_and_another_version_makes_the_environment_anew(machine):
    machine.add("python3.11", "3.11")
    machine.add("mine", "3.13")
    machine.add("old", "3.8")
    machine.add("uv")
    status, error, notes = machine(PYTHON="old")
    assert status == 1 and "old: 3.8" in error and "python3.11" not in error and notes == []
    assert machine(PYTHON="mine")[2][0] == "venv by 3.13"
    python = machine.project / ".venv/bin/python"
    python.write_text(python.read_text().replace("version=3.13", "version=3.10"))
    assert machine()[2][:2] == ["venv by 3.11", INSTALL]


def test_without_a_python_the_user_hears_what_was_tried(machine):
    machine.add("python3", "3.8")
    status, error, _ = machine()
    assert status == 1 and not (machine.project / ".venv").exists()
    assert "3.11, 3.12 or 3.13 is needed" in error and "uv" in error
    assert "python3.11: not found" in error and "python3: 3.8" in error


@pytest.mark.parametrize(
    ("fail", "message"), [("venv", "python3.11-venv"), ("install", "run this again"), ("uv", "uv")]
)
def test_what_fails_is_named_and_can_be_gone_on_with(machine, fail, message):
    if fail == "uv":
        machine.add("uv")
    else:
        machine.add("python3.11", "3.11")
    status, error, _ = machine(FAIL=fail)
    assert status == 1 and message in error
    assert (machine.project / ".venv").exists() == (fail == "install")
    status, _, notes = machine("run.sh", "x")
    assert status == 0 and notes[-2:] == [INSTALL, "src/main.py x"]


CHECKS = [
    "-m ruff check", "-m ruff format", "--no-logo", "scripts/settings_stub.py --check", "-m mypy",
]  # fmt: skip


@pytest.mark.parametrize("script", ["test.sh", ".ci/run"])
def test_all_checks_come_before_the_tests(machine, script):
    machine.add("python3.11", "3.11")
    status, _, notes = machine(script)
    assert status == 0 and "requirements-dev.txt" in notes[1]
    for note, check in zip(notes[2:], [*CHECKS, "-m pytest"], strict=True):
        assert note.startswith(check)
    assert "-p paper" not in notes[-2]
    (machine.project / "paper").mkdir()
    assert "-p inspo -p paper" in machine(script)[2][-2]


@pytest.mark.parametrize("failing", ["check", "mypy"])
def test_a_check_that_fails_is_the_end(machine, failing):
    machine.add("python3.11", "3.11")
    status, _, notes = machine("test.sh", FAIL=failing)
    assert status == 1 and not any("pytest" in note for note in notes)
    assert machine("test.sh", "-k", "name")[2] == ["-m pytest -k name"]  # arguments: pytest alone
    assert machine("test.sh", FAIL="pytest")[0] == 1
