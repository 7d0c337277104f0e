"""Puts the plugin into an EPyMARL checkout, says what is there, and takes it out again.

What is put there: `src/inspo_plugin/` (the glue of `inside/`, and below `project/` those of our
files that the algorithms need, byte for byte), YAML files for each algorithm, and one line in each
of three registries. `src/inspo_plugin/installed.json` records all of it with hashes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inspo.epymarl.configs import (
    CONTROLLER,
    DEFAULT,
    configs,
    keys_of,
    offline_algorithms,
    values_of,
)
from inspo.utils.errors import UserError
from inspo.utils.paths import PROJECT_ROOT

SRC = PROJECT_ROOT / "src"
INSIDE = SRC / "epymarl" / "inside"
PACKAGE = "inspo_plugin"
HOME = f"src/{PACKAGE}"
MANIFEST = f"{HOME}/installed.json"
REGISTRIES = {  # the checkout's file -> what of the plugin it takes in
    "src/learners/__init__.py": "LEARNERS",
    "src/controllers/__init__.py": "CONTROLLERS",
    "src/runners/__init__.py": "RUNNERS",
}
LINE = f"from {PACKAGE} import {{0}}; REGISTRY.update({{0}})  # offline learners: {HOME}/"
MARKS = (  # what a checkout has that follows EPyMARL's contract
    *REGISTRIES,
    "src/main.py",
    "src/run.py",
    "src/config/default.yaml",
    "src/config/algs",
    "src/components/episode_buffer.py",
    "src/runners/episode_runner.py",
)


class PluginError(UserError):
    """A checkout into which the plugin cannot go, or out of which it cannot be taken."""


@dataclass
class Installed:
    """What the manifest says. files: path -> SHA-256. lines: path -> the text inserted there."""

    commit: str | None
    algorithms: list[str]
    files: dict[str, str]
    lines: dict[str, str]


@dataclass
class Outcome:
    """What a command did: paths by what became of them, relative to the checkout."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------------------------------
# What goes there


def module_file(module: str) -> Path | None:
    """The file of a module of ours, None if it is none of ours (or a folder without __init__)."""
    place = SRC.joinpath(*module.split("."))
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def imported(file: Path) -> set[str]:
    """All modules that a file names in import statements, wherever in it they stand.

    Of `from a import b` both a and a.b, since b may be a module.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def closure(modules: Iterable[str]) -> dict[str, Path]:
    """module -> file of these modules and of all of ours that they import, directly or not.

    The `__init__` of a package counts when it is imported itself, not when a module in it is: ours
    are registries, and would bring every learner along with one.
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        file = module_file(module)
        if file and module not in found:
            found[module] = file
            waiting += imported(file)
    return found


def registry(package: str) -> dict[str, list[str]]:
    """name -> [module, class] of one of our registries, read without importing (torch is slow)."""
    tree = ast.parse((SRC / package / "__init__.py").read_bytes())
    modules = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REGISTRY"
    )
    return {
        key.value: [modules[value.id], value.id] for key, value in zip(table.keys, table.values)
    }


def parts(algorithms: Iterable[str]) -> dict:
    """What the plugin registers there and checks, as `inside/__init__.py` describes it."""
    learners, controllers = registry("learners"), registry("controllers")
    found: dict[str, dict] = {"learners": {}, "controllers": {}, "keys": {}}
    for algorithm in algorithms:
        values = values_of(algorithm)
        found["learners"][values["learner"]] = learners[values["learner"]]
        found["controllers"][CONTROLLER.format(values["mac"])] = controllers[values["mac"]]
        found["keys"][algorithm] = keys_of(algorithm)
    return found


def contents(algorithms: Iterable[str]) -> dict[str, bytes]:
    """Path in the checkout -> content, of all new files but the manifest."""
    found = parts(algorithms)
    files = {
        f"{HOME}/{path.relative_to(INSIDE).as_posix()}": path.read_bytes()
        for path in sorted(INSIDE.rglob("*.py"))
    }
    files[f"{HOME}/LICENSE"] = (PROJECT_ROOT / "LICENSE").read_bytes()
    files[f"{HOME}/parts.json"] = (json.dumps(found, indent=1) + "\n").encode()
    for file in ours(found).values():
        files[f"{HOME}/project/{file.relative_to(SRC).as_posix()}"] = file.read_bytes()
    for algorithm in algorithms:
        for name, text in configs(algorithm).items():
            files[f"src/config/algs/{name}"] = text.encode()
    return files


def ours(found: dict) -> dict[str, Path]:
    """module -> file of ours that the glue and the registered classes need."""
    prefix = f"{PACKAGE}.project."
    named = {module for file in INSIDE.rglob("*.py") for module in imported(file)}
    roots = [module.removeprefix(prefix) for module in named if module.startswith(prefix)]
    roots += [module for kind in ("learners", "controllers") for module, _ in found[kind].values()]
    return closure(roots)


def packages_needed(algorithms: Iterable[str]) -> list[str]:
    """Top-level modules of others that our files there import as they are loaded."""
    found = set()
    for file in ours(parts(algorithms)).values():
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    rooms = {path.stem for path in SRC.iterdir()}
    return sorted(found - rooms - set(sys.stdlib_module_names))


def inserted(content: bytes, name: str) -> str:
    """The text that goes to the end of a registry, with the newline that the file's end needs."""
    newline = "\r\n" if b"\r\n" in content else "\n"
    line = LINE.format(name)
    return line + newline if content.endswith(b"\n") else newline + line


# --------------------------------------------------------------------------------------------------
# The commands


def install(root: Path, algorithms: list[str] | None, commit: str | None, force: bool) -> Outcome:
    """Put the plugin into the checkout, or bring what is there up to date; all or nothing.

    algorithms: None for those that are there, or the default. force: overwrite files of the plugin
    that were edited. Raises PluginError, and then nothing has changed.
    """
    require_checkout(root)
    before = read_manifest(root)
    if algorithms is None:
        algorithms = before.algorithms if before else list(DEFAULT)
        algorithms = [name for name in algorithms if name in offline_algorithms()]
    files = contents(algorithms)
    if before and not force:
        require_unedited(root, before, "install")
    _require_free(root, [path for path in files if not before or path not in before.files])
    lines, changes = _registered(root, before, parts(algorithms))
    new = Installed(
        commit, algorithms, {path: _hash(content) for path, content in files.items()}, lines
    )
    old = before.files if before else {}
    changes |= {path: content for path, content in files.items() if _read(root / path) != content}
    changes |= {path: None for path in old if path not in files and (root / path).exists()}
    if before and not changes and before.algorithms == algorithms:
        return Outcome()
    # The manifest first and the registries last: whatever ends this in between, `status` knows what
    # there is, and the checkout does not import what is not whole.
    manifest = (json.dumps(vars(new), indent=1) + "\n").encode()
    order = sorted(changes, key=lambda path: (path in REGISTRIES, path))
    outcome = _outcome(root, changes)
    apply(root, {MANIFEST: manifest} | {path: changes[path] for path in order})
    return outcome


def remove(root: Path, force: bool) -> Outcome:
    """Take out what `install` put in, nothing else. force: edited files too."""
    before = _require_installed(root)
    if not force:
        require_unedited(root, before, "remove")
    changes: dict[str, bytes | None] = {}
    for path, text in before.lines.items():
        content = _read(root / path) or b""
        if text.encode() in content:
            changes[path] = content.replace(text.encode(), b"")
    changes |= {path: None for path in before.files if (root / path).exists()}
    outcome = _outcome(root, changes)
    apply(root, changes | {MANIFEST: None})
    return outcome


@dataclass
class Status:
    """`installed` is None where there is no plugin; `pending`: what `install` would do to it."""

    installed: Installed | None
    edited: list[str]
    pending: bool


def status(root: Path) -> Status:
    """What there is; changes nothing."""
    require_checkout(root)
    before = read_manifest(root)
    if before is None:
        return Status(None, [], True)
    files = {}
    if set(before.algorithms) <= set(offline_algorithms()):
        files = contents(before.algorithms)
    hashes = {path: _hash(content) for path, content in files.items()}
    return Status(before, edited(root, before), hashes != before.files)


# --------------------------------------------------------------------------------------------------
# What must hold


def require_checkout(root: Path) -> None:
    missing = [mark for mark in MARKS if not (root / mark).exists()]
    if missing:
        raise PluginError(
            f"{root}: not an EPyMARL checkout: there is no {', '.join(missing)}. Expected the "
            "folder that `git clone` of EPyMARL, or of a fork of it, made."
        )


def _require_installed(root: Path) -> Installed:
    before = read_manifest(root)
    if before is None:
        raise PluginError(f"{root}: the plugin is not there ({MANIFEST} is missing).")
    return before


def _require_free(root: Path, new: list[str]) -> None:
    """No file of the checkout's own stands where one is to go."""
    taken = [path for path in new if (root / path).exists() or (root / path).is_symlink()]
    if not taken and not read_manifest(root) and (root / HOME).exists():
        taken = [HOME]
    if taken:
        raise PluginError(
            f"{root}: these are there already, and not the plugin's: {', '.join(taken)}. Rename "
            "them, or leave their algorithms out with --algs."
        )


def _registered(root, before, found) -> tuple[dict[str, str], dict[str, bytes | None]]:
    """The text inserted in each registry, and the contents of those that change for it."""
    lines, changes = dict(before.lines) if before else {}, {}
    names = {"LEARNERS": found["learners"], "CONTROLLERS": found["controllers"]}
    for path, what in REGISTRIES.items():
        content = (root / path).read_bytes()
        known = lines.get(path, "").encode()
        bare = content.replace(known, b"") if known else content
        taken = sorted(_words(root, path, bare) & set(names.get(what, ["offline"])))
        if taken:
            raise PluginError(
                f"{root / path}: the name '{taken[0]}' is taken by the checkout. Rename it there, "
                "or leave its algorithm out with --algs."
            )
        if not known or known not in content:
            lines[path] = inserted(content, what)
            changes[path] = content + lines[path].encode()
    dirty = uncommitted(root, changes)
    if dirty:
        raise PluginError(
            f"{root}: uncommitted changes in {', '.join(dirty)}, which would get a line of the "
            "plugin. Commit or stash them first."
        )
    return lines, changes


def _words(root: Path, path: str, content: bytes) -> set[str]:
    """The strings in a registry's file, which must be Python with a `REGISTRY`."""
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError) as error:
        raise PluginError(
            f"{root / path}: not valid Python ({error}). Correct it first."
        ) from error
    if not any(isinstance(node, ast.Name) and node.id == "REGISTRY" for node in nodes):
        raise PluginError(f"{root / path}: expected a dictionary REGISTRY, found none.")
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def uncommitted(root: Path, paths: Collection[str]) -> list[str]:
    """Those of `paths` that differ from the last commit; none where there is no git."""
    if not paths:
        return []  # git would take it for all paths
    command = ["git", "-C", str(root), "status", "--porcelain", "--", *paths]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line[3:] for line in found.stdout.splitlines()]


def edited(root: Path, before: Installed) -> list[str]:
    """What is not as it was installed, each with what became of it."""
    found = []
    for path, digest in before.files.items():
        content = _read(root / path)
        if content is None:
            found.append(f"{path} is gone")
        elif _hash(content) != digest:
            found.append(f"{path} was edited")
    for path, text in before.lines.items():
        if text.encode() not in (_read(root / path) or b""):
            found.append(f"{path}: its line of the plugin is gone or was edited")
    known = {*before.files, MANIFEST}
    for path in sorted((root / HOME).rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and "__pycache__" not in path.parts and name not in known:
            found.append(f"{name} is not the plugin's")
    return found


def require_unedited(root: Path, before: Installed, command: str) -> None:
    found = edited(root, before)
    if found:
        raise PluginError(
            f"{root}: not as it was installed: {'; '.join(found)}. Put your changes elsewhere, or "
            f"{command} with --force, which overwrites or deletes the plugin's files in spite of "
            "them (and leaves those that are not the plugin's)."
        )


# --------------------------------------------------------------------------------------------------
# Files


def read_manifest(root: Path) -> Installed | None:
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Installed(**content)
    except (OSError, ValueError, TypeError) as error:
        raise PluginError(
            f"{path}: not a manifest of the plugin ({error}). Restore it, or take out {HOME} by "
            "hand, with the plugin's lines in the registries and its files in src/config/algs."
        ) from error


def apply(root: Path, changes: Mapping[str, bytes | None]) -> None:
    """Write (or, for None, delete) files in this order; after a failure all is as it was."""
    done: list[tuple[Path, bytes | None]] = []
    try:
        for name, content in changes.items():
            path = (root / name).resolve()
            done.append((path, _read(path)))
            _put(path, content)
    except BaseException as error:
        for path, content in reversed(done):
            if _read(path) != content:
                _put(path, content)
        _tidy(root)
        if isinstance(error, OSError):
            raise PluginError(
                f"{error.filename or root}: {error.strerror or error}. "
                "The checkout is as it was before."
            ) from error
        raise
    _tidy(root)


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _tidy(root: Path) -> None:
    """Delete bytecode and empty folders of a plugin that is gone."""
    home = root / HOME
    for cache in sorted(home.rglob("__pycache__")):
        sources = {path.stem for path in cache.parent.glob("*.py")}
        for compiled in cache.glob("*.pyc"):
            if compiled.name.split(".")[0] not in sources:
                compiled.unlink()
    for folder in sorted(home.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if home.is_dir() and not any(home.iterdir()):
        home.rmdir()


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _outcome(root: Path, changes: Mapping[str, bytes | None]) -> Outcome:
    outcome = Outcome()
    for path, content in changes.items():
        if content is None:
            outcome.removed.append(path)
        else:
            (outcome.changed if (root / path).exists() else outcome.added).append(path)
    return outcome
