"""Puts the plugin into an EPyMARL checkout, tells what is there, and takes it out again.

What goes there: YAML files for each algorithm, a line at the end of three registries, and a
manifest with the hashes of the files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from inspo import __version__
from inspo.epymarl.configs import configs
from inspo.utils import files
from inspo.utils.errors import UserError
from inspo.utils.paths import PROJECT_ROOT

MANIFEST = "src/inspo_plugin.json"
REGISTRIES = {f"src/{k.lower()}/__init__.py": k for k in ("LEARNERS", "CONTROLLERS", "RUNNERS")}
LINE = (
    "from inspo.epymarl import {0}; REGISTRY.update({0})"
    "  # inspo is missing? pip install it, or take this out: inspo-plugin remove"
)
OURS = rb"from inspo\.epymarl import [^\r\n]*"  # with the line end that came with it:
OUR_LINE = re.compile(rb"\r?\n" + OURS + rb"\Z|" + OURS + rb"\r?\n")
MARKS = (*REGISTRIES, "src/run.py", "src/config/algs", "src/components/episode_buffer.py")


def read_manifest(root: Path) -> dict[str, str]:
    """Path -> SHA-256 of the files that are installed; empty where the plugin is not there."""
    if missing := [mark for mark in MARKS if not (root / mark).exists()]:
        raise UserError(
            f"{root}: not an EPyMARL checkout: there is no {', '.join(missing)}. Expected the "
            "folder that `git clone` of EPyMARL, or of a fork of it, made"
        )
    content = _read(root / MANIFEST)
    try:
        return {} if content is None else dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{root / MANIFEST}: not a manifest of the plugin ({error}). Restore it, or remove it, "
            "the plugin's lines in the registries and its files in src/config/algs by hand"
        ) from error


def wanted(algorithms: Iterable[str]) -> dict[str, bytes]:
    """Path -> content of the files that `install` writes."""
    parts = (configs(algorithm).items() for algorithm in algorithms)
    return {f"src/config/algs/{name}": text.encode() for part in parts for name, text in part}


def hashes(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}


def install(root: Path, algorithms: list[str], python: str, force: bool) -> list[str]:
    """Put the plugin there, or bring it up to date; all or nothing. Returns the paths changed.

    python: the interpreter that runs the checkout. force: overwrite what was edited.
    """
    before = read_manifest(root)
    require_package(root, python)
    require_unedited(root, before, force)
    new = wanted(algorithms)
    if taken := [path for path in new if path not in before and (root / path).exists()]:
        raise UserError(
            f"{root}: these are there already, and not the plugin's: {', '.join(taken)}. Rename "
            "them, or leave their algorithms out with --algs"
        )
    changes: dict[str, bytes | None] = {path: None for path in before if path not in new}
    manifest = (json.dumps(hashes(new), indent=1) + "\n").encode()
    return _apply(root, changes | new | _registries(root) | {MANIFEST: manifest})


def remove(root: Path, force: bool) -> list[str]:
    """Take out what `install` put there, nothing else. force: edited files too."""
    before = read_manifest(root)
    if not before:
        raise UserError(f"{root}: the plugin is not there ({MANIFEST} is missing)")
    require_unedited(root, before, force)
    changes: dict[str, bytes | None] = {path: None for path in (*before, MANIFEST)}
    changes |= {path: OUR_LINE.sub(b"", (root / path).read_bytes()) for path in REGISTRIES}
    return _apply(root, changes)


def edited(root: Path, before: Mapping[str, str]) -> list[str]:
    """What is not as it was installed, each with what became of it."""
    there = {path: content for path in before if (content := _read(root / path)) is not None}
    found = [f"{path} is gone" for path in before if path not in there]
    found += [f"{path} was edited" for path, h in hashes(there).items() if h != before[path]]
    for path, kind in REGISTRIES.items():
        if LINE.format(kind).encode() not in (root / path).read_bytes():
            found.append(f"{path}: the plugin's line is gone or was edited")
    return found


def require_unedited(root: Path, before: Mapping[str, str], force: bool) -> None:
    if before and not force and (found := edited(root, before)):
        raise UserError(
            f"{root}: not as it was installed: {'; '.join(found)}. Put your changes elsewhere, or "
            "say --force, which overwrites or deletes them"
        )


def require_package(root: Path, python: str) -> None:
    """The Python that runs the checkout has this version of the package."""
    command = [python, "-c", "import inspo; print(inspo.__version__)"]
    try:
        done = subprocess.run(command, cwd=root / "src", capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--python: {python} cannot be run: {error.strerror}") from error
    if done.stdout.strip() != __version__:
        raise UserError(
            f"{python}: expected the package inspo {__version__}, found "
            f"{done.stdout.strip() or 'none'}. Install it (`{python} -m pip install "
            f"{PROJECT_ROOT}`), or name the Python that runs the checkout with --python"
        )


def _registries(root: Path) -> dict[str, bytes | None]:
    """The contents of the registries, each with its line at the end."""
    contents: dict[str, bytes | None] = {}
    for path, kind in REGISTRIES.items():
        content = (root / path).read_bytes()
        if LINE.format(kind).encode() in content:
            continue
        if not re.search(rb"^REGISTRY\b", content, re.M):
            raise UserError(f"{root / path}: expected a dictionary REGISTRY, found none")
        if re.search(rb"""["']offline["']""", content):
            raise UserError(f"{root / path}: the name 'offline' is taken. Rename it there")
        newline = b"\r\n" if b"\r\n" in content else b"\n"
        line = LINE.format(kind).encode()
        whole = content.endswith(b"\n")
        contents[path] = content + (line + newline if whole else newline + line)
    command = ["git", "-C", str(root), "status", "--porcelain", "--", *contents]
    if contents and shutil.which("git"):
        status = subprocess.run(command, capture_output=True, text=True).stdout
        if status:
            raise UserError(
                f"{root}: uncommitted changes in {', '.join(status.split()[1::2])}, which would "
                "get a line of the plugin. Commit or stash them first"
            )
    return contents


def _apply(root: Path, changes: Mapping[str, bytes | None]) -> list[str]:
    """Write (for None: delete) what differs; after a failure everything is as it was before."""
    before = {path: content for path in changes if (content := _read(root / path)) != changes[path]}
    try:
        for path in before:
            _put((root / path).resolve(), changes[path])
    except BaseException as error:
        for path, content in before.items():
            _put((root / path).resolve(), content)
        if isinstance(error, OSError):
            raise UserError(f"{error}. The checkout is as it was before") from error
        raise
    return list(before)


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    with files.temporary(path) as new:
        new.write_bytes(content)
        if path.exists():
            shutil.copymode(path, new)
        new.replace(path)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
