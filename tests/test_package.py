"""The installed package: what the wheel holds, and that it runs from anywhere."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from inspo.utils.paths import CONFIG_DIR, commands_here

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--config=bc", "--env-config=matrix_offline", "with", "map_name=xor", "quality=b",
         "t_max=2000", "test_nepisode=0", "use_progress_bar=False", "seed=1"]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder for PYTHONPATH with the package in it, installed from a wheel; read-only."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "package").mkdir()
    (source / "package/inspo").symlink_to("../src")
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    pip = [sys.executable, "-m", "pip", "install", *options, "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, source], check=True)
    for path in [target, *target.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    yield target
    for path in [target, *target.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.fixture
def run(site, tmp_path):
    """Runs a command of the installed package in an empty folder, where there is no git."""
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "bin").mkdir()

    def call(command, *args):
        program = site / "bin" / command
        env = os.environ | {"PYTHONPATH": str(site), "PATH": str(tmp_path / "bin")}
        env |= {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        return subprocess.run(
            [sys.executable, program, *args], cwd=folder, env=env, capture_output=True, text=True
        )

    call.folder = folder
    return call


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_whole_package_and_nothing_else(site):
    ours = {name for name in files(ROOT / "src") if "__pycache__" not in name}
    installed = {name for name in files(site / "inspo") if "__pycache__" not in name}
    assert installed == ours
    assert any(name.endswith("agent.th") for name in ours)
    others = {path.name for path in site.iterdir() if "dist-info" not in path.name}
    assert others == {"inspo", "bin"}


def test_a_run_writes_below_the_current_folder_alone(site, run):
    before = files(site)
    done = run("inspo", *SMALL)
    assert done.returncode == 0, done.stderr
    assert files(site) == before
    written = files(run.folder)
    assert "datasets/matrix/xor_b.h5" in written
    assert "results/sacred/bc/xor_b/1/run.json" in written
    assert any(name.endswith("agent.th") for name in written)
    assert set(path.name for path in run.folder.parent.iterdir()) == {"empty", "bin"}
    listed = run("inspo-dataset", "list")
    assert listed.returncode == 0 and str(run.folder / "datasets/matrix/xor_b.h5") in listed.stdout


def test_console_commands(site, run):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {path.name for path in (site / "bin").iterdir()} == set(scripts)
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    done = run("inspo", "--help")
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    assert run("inspo", "--no-such-option").returncode == 2


NOTE_MODULES = """
import atexit, json, os, sys

def note():
    modules = dict(sys.modules)
    modules.pop("__mp_main__", None)  # multiprocessing's second name for the same module
    files = {name: getattr(module, "__file__", None) for name, module in modules.items()}
    json.dump(files, open(os.environ["MODULES"], "w"))

atexit.register(note)
"""


@pytest.mark.parametrize(
    "command", [["main.py", *SMALL], ["sweep.py", "-h"]], ids=lambda command: command[0]
)
def test_a_checkout_uses_its_own_modules_each_under_one_name(site, tmp_path, command):
    """Where the package is installed as well."""
    (tmp_path / "sitecustomize.py").write_text(NOTE_MODULES)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{site}", "MODULES": str(tmp_path / "modules")}
    program, *args = command
    if program == "main.py":
        args += [f"{key}={tmp_path}" for key in ("local_results_path", "datasets_dir")]
    done = subprocess.run(
        [sys.executable, ROOT / "src" / program, *args], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    modules = json.loads((tmp_path / "modules").read_text())
    loaded = {name: str(Path(file).resolve()) for name, file in modules.items() if file}
    assert not [name for name, file in loaded.items() if file.startswith(str(site))]
    ours = {name: file for name, file in loaded.items() if file.startswith(str(ROOT / "src"))}
    assert all(name == "__main__" or name.split(".")[0] == "inspo" for name in ours)
    assert len(ours) > 3 and max(Counter(ours.values()).values()) == 1


def test_messages_name_what_is_typed_where_the_package_is_installed():
    message = "`python src/dataset.py list`, ./run.sh with lr=1, src/config/algs"
    assert commands_here(message, in_checkout=True) == message
    installed = commands_here(message, in_checkout=False)
    assert installed == f"`inspo-dataset list`, inspo with lr=1, {CONFIG_DIR}/algs"
