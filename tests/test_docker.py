"""The image without an engine: its scripts run against a fake docker and a local web server."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import time
import types
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from server import serving

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"


def run(script, *args, **env):
    """Run a script of docker/ in a bare environment; output as text."""
    env = {"PATH": os.environ["PATH"]} | env
    command = ["bash", str(script), *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_the_image_gets_what_a_run_needs_and_no_results():
    """What the Dockerfile copies is there and not kept back; what git ignores is kept back."""
    ignored = set((ROOT / ".dockerignore").read_text().split("\n"))
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.M)
    for source in " ".join(copies).split():
        assert (ROOT / source).exists() and source not in ignored, source
    for line in (ROOT / ".gitignore").read_text().split():
        assert {line.rstrip("/"), "**/" + line.rstrip("/")} & ignored, line


# --- run.sh and build.sh --------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    """A machine with a copy of docker/ and a docker that notes what it was asked."""
    shutil.copytree(DOCKER, tmp_path / "project" / "docker")
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()

    def program(name, body):
        (programs / name).write_text("#!/bin/bash\n" + body)
        (programs / name).chmod(0o755)

    def call(script, *args, **env):
        """The finished process, and the arguments of docker (None: not called)."""
        notes.unlink(missing_ok=True)
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes)} | env
        done = run(tmp_path / "project" / "docker" / script, *args, **env)
        return done, notes.read_text().split("\0")[:-1] if notes.exists() else None

    program("nvidia-smi", "exit 9")
    program(
        "docker",
        'case "$1 $2" in\n'
        '"image inspect") [ "$3" != absent ] ;;\n'
        '"info "*) echo "{\\"${RUNTIME:-runc}\\":{}}" ;;\n'
        '*) printf "%s\\0" "$@" >"$NOTES"; exit "${STATUS:-0}" ;;\nesac\n',
    )
    call.program, call.project = program, tmp_path / "project"
    return call


def test_run_forwards_its_arguments_to_main_or_another_command(machine):
    args = ["--config=inspo", "--env-config=sc2_offline", "with", "map_name=5m_vs_6m", "label=a b"]
    done, asked = machine("run.sh", *args)
    assert done.returncode == 0, done.stderr
    image = asked.index("inspo:sc2-4.10")
    options = asked[1:image]
    assert asked[0] == "run" and asked[image + 1 :] == ["python", "src/main.py", *args]
    assert options[options.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert {"--init", "--rm"} <= set(options) and not {"--gpus", "--tty"} & set(options)
    for folder in ("results", "datasets"):
        place = machine.project / folder
        assert place.is_dir()  # made by the caller: docker would make it as root
        assert f"type=bind,source={place},target=/inspo/{folder}" in options
    assert machine("run.sh", "--help", STATUS="7")[0].returncode == 7
    _, asked = machine("run.sh", "--", "python", "src/dataset.py", "list", INSPO_IMAGE="mine")
    assert asked[asked.index("mine") + 1 :] == ["python", "src/dataset.py", "list"]


def test_run_passes_gpus_where_there_are_any(machine):
    machine.program("nvidia-smi", "exit 0")
    for env, gpus in (
        ({"RUNTIME": "nvidia"}, ["--gpus", "all"]),
        ({"RUNTIME": "nvidia", "INSPO_GPUS": "device=1"}, ["--gpus", "device=1"]),
        ({"RUNTIME": "nvidia", "INSPO_GPUS": "none"}, []),
        ({}, []),  # a GPU, but docker cannot pass it
    ):
        done, asked = machine("run.sh", "x", **env)
        place = asked.index("--gpus") if "--gpus" in asked else len(asked)
        assert asked[place : place + 2] == gpus
    assert "toolkit" in done.stderr


def test_build_asks_for_what_was_said(machine):
    done, asked = machine("build.sh", "--accept-licence")
    assert done.returncode == 0 and "WARNING" not in done.stderr
    assert asked[0] == "build" and asked[-1] == str(machine.project)
    assert asked[asked.index("--tag") + 1] == "inspo:sc2-4.10"
    assert {"ACCEPT_BLIZZARD_LICENCE=yes", "SC2_VERSION=4.10", "TORCH_INDEX="} <= set(asked)
    options = ["--accept-licence", "--sc2", "4.6.2", "--torch-index", "http://x/cpu"]
    done, asked = machine("build.sh", *options, "--", "--build-arg", "SC2_URL=u")
    assert "not comparable" in done.stderr
    assert {"SC2_VERSION=4.6.2", "SC2_URL=u", "TORCH_INDEX=http://x/cpu"} <= set(asked)
    declared = re.findall(r"^ARG (\w+)", (DOCKER / "Dockerfile").read_text(), re.M)
    given = [word.partition("=")[0] for word in asked if re.match(r"[A-Z_0-9]+=", word)]
    assert set(given) <= set(declared)


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("run.sh", [], "docker/run.sh ARGS"),
        ("run.sh", ["absent"], "docker/build.sh"),  # without an image
        ("build.sh", ["--sc2", "4.10"], "--accept-licence"),
        ("build.sh", ["--accept-licence", "--sc2", "5.0"], "--sc2 5.0"),
        ("build.sh", ["--accept-licence", "--sc2"], "--sc2 needs a value"),
        ("build.sh", ["--acept-licence"], "--acept-licence: no such option"),
    ],
)
def test_wrong_arguments_are_refused(machine, script, args, message):
    done, asked = machine(script, *args, **({"INSPO_IMAGE": "absent"} if "absent" in args else {}))
    assert done.returncode == 2 and asked is None and message in done.stderr


# --- The installers -------------------------------------------------------------------------------


def game(build: int = 75689) -> bytes:
    """An archive as Blizzard packs it, a few kB of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        noise = np.random.default_rng(0).bytes(50_000)
        for name, content in ((f"Versions/Base{build}/SC2_x64", b"#!/bin/sh\n"), ("noise", noise)):
            archive.writestr(zipfile.ZipInfo(f"StarCraftII/{name}"), content)  # without the time
    return file.getvalue()


@pytest.fixture
def install(tmp_path):
    """Runs install_game.sh against a server of its own; returns (finished process, folder)."""
    if not (shutil.which("curl") and shutil.which("unzip")):
        pytest.skip("needs curl and unzip")
    folder, name = tmp_path / "StarCraftII", "/SC2.zip"
    with serving() as server:

        def call(content, script=("ok",), **env):
            server.files[name], server.script[name] = content, list(script)
            server.requests.clear()
            given = {"ACCEPT_BLIZZARD_LICENCE": "yes", "PAUSE": "0"}
            given |= {"SC2_URL": server.address + name, "SC2_SHA256": sha256(content).hexdigest()}
            return run(DOCKER / "install_game.sh", folder, **given | env), folder

        call.requests, call.ranges = server.requests, server.ranges
        yield call


def test_the_game_is_installed_and_recorded(install):
    done, folder = install(game())
    assert done.returncode == 0, done.stderr
    assert os.access(folder / "Versions/Base75689/SC2_x64", os.X_OK)
    record = (folder / "installed.txt").read_text()
    assert record in done.stdout and record.startswith("StarCraft II 4.10\n")
    assert f"{sha256(game()).hexdigest()} (checked)" in record
    assert [path.name for path in folder.parent.iterdir()] == ["StarCraftII"]
    # A second time there is nothing to do; another version does not replace it.
    assert install(game())[0].returncode == 0 and install.requests == []
    done, _ = install(game(), SC2_VERSION="4.6.2")
    assert done.returncode == 1 and "exists" in done.stderr
    shutil.rmtree(folder)
    done, folder = install(game(69232), SC2_VERSION="4.6.2", SC2_SHA256="")  # of unknown hash
    assert done.returncode == 0 and "not the game that CFCQL's data" in done.stderr
    assert "(recorded, not checked)" in (folder / "installed.txt").read_text()


def test_a_download_goes_on_after_a_break(install):
    done, _ = install(game(), ["break 20000", "503", "break 20000", "ok"])
    assert done.returncode == 0
    assert install.ranges() == ["bytes=20000-", "bytes=20000-", "bytes=40000-"]


GAME = game()


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (GAME, {"ACCEPT_BLIZZARD_LICENCE": "true"}, "AI_AND_MACHINE_LEARNING_LICENSE"),
        (GAME, {"SC2_SHA256": ""}, "expected was 1052f249f30a242b"),  # the known one
        (GAME.replace(b"sh", b"hs"), {"SC2_SHA256": "any"}, "not a whole zip archive"),
        (b"<html>please log in</html>", {"SC2_SHA256": "any"}, "not a whole zip archive"),
        (GAME, {"script": ["404"]}, "HTTP status 404"),
        (game(12345), {}, "Versions/Base75689/SC2_x64"),
    ],
    ids=["licence", "hash", "damaged", "page", "404", "other archive"],
)
def test_what_is_no_game_is_refused(install, content, settings, message):
    done, folder = install(content, **settings)
    assert done.returncode == 1 and not folder.exists()  # nothing that looks like a game is left
    assert message in done.stderr and len(re.findall("^error: ", done.stderr, re.M)) == 1
    assert len(install.requests) <= 1 and ("LICENSE" in message) == (install.requests == [])


def test_what_was_fetched_is_gone_on_with(install):
    done, folder = install(game(), ["break 20000", "break 0"], SC2_SHA256="any")
    assert done.returncode == 1 and not folder.exists()
    assert "goes on with what has come" in done.stderr
    assert install(game())[0].returncode == 0 and install.ranges() == ["bytes=20000-"]


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_maps_come_from_the_pinned_commit(tmp_path):
    smac, project, folder = tmp_path / "smac", tmp_path / "project", tmp_path / "game/SMAC_Maps"
    maps = smac / "smac/env/starcraft2/maps/SMAC_Maps"
    maps.mkdir(parents=True)

    def git(*args):
        words = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(smac), *args]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    for text in ("old", "new"):
        for name in ("2s3z", "3s_vs_5z", "5m_vs_6m", "6h_vs_8z", "3m"):
            (maps / f"{name}.SC2Map").write_text(text)
        git("add", ".")
        git("commit", "--quiet", "--message", text)
    commit = git("rev-parse", "HEAD~1")

    (project / "docker").mkdir(parents=True)
    script = shutil.copy(DOCKER / "install_maps.sh", project / "docker")
    (project / "requirements-sc2.txt").write_text("smac @ git+https://x.invalid/smac.git@main\n")
    done = run(script, folder)
    assert done.returncode == 1 and "pins no smac" in done.stderr and not folder.exists()
    (project / "requirements-sc2.txt").write_text(f"smac @ git+file://{smac}@{commit}  # it\n")
    for _ in range(2):  # a second time replaces the first
        done = run(script, folder)
        assert done.returncode == 0 and "5 maps" in done.stdout, done.stderr
    assert {path.read_text() for path in folder.glob("*.SC2Map")} == {"old"}
    assert commit in (folder / "installed.txt").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["SMAC_Maps"]


# --- check.py -------------------------------------------------------------------------------------


class Game:
    """Of smac.env.StarCraft2Env what check.py uses: an episode of four steps."""

    behaviour, build, closed = "plays", 75689, 0

    def __init__(self, map_name, seed):
        version = types.SimpleNamespace(game_version="4.10.0", base_build=self.build)
        self.steps, self._controller = 0, types.SimpleNamespace(ping=lambda: version)

    def reset(self):
        if self.behaviour == "does not start":
            raise RuntimeError("no binary")

    def get_avail_actions(self):
        return [[0, 1, 1], [0, 0, 1]]

    def step(self, actions):
        assert actions[0] in (1, 2) and actions[1] == 2
        self.steps += 1
        if self.behaviour == "hangs":
            time.sleep(20)
        if self.behaviour == "crashes" and self.steps == 2:
            return 0, True, {}  # SMAC's answer when the connection broke
        return 1.5, self.steps == 4, {"battle_won": False} if self.steps == 4 else {}

    def get_env_info(self):
        return {"n_agents": 2, "n_actions": 3, "obs_shape": 5, "state_shape": 7}

    def close(self):
        type(self).closed += 1


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    """Runs check.py on the stand-in; returns (exit status, what it printed)."""
    spec = importlib.util.spec_from_file_location("docker_check", DOCKER / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    game = type("StarCraft2Env", (Game,), {})
    smac = types.SimpleNamespace(env=types.SimpleNamespace(StarCraft2Env=game))
    monkeypatch.setitem(sys.modules, "smac", smac)
    monkeypatch.setitem(sys.modules, "smac.env", smac.env)
    monkeypatch.setenv("SC2PATH", str(tmp_path))

    def call(*args, **attributes):
        for name, value in attributes.items():
            setattr(game, name, value)
        monkeypatch.setattr(sys, "argv", ["check.py", *args])
        return module.main(), capsys.readouterr().out

    call.game = game
    return call


def test_check_plays_the_four_maps(check):
    status, out = check()
    assert status == 0 and check.game.closed == 4 and "WARNING" not in out
    for name in ("2s3z", "3s_vs_5z", "5m_vs_6m", "6h_vs_8z"):
        line = re.search(rf"^{name} .*", out, re.M)[0]
        assert "steps 4" in line and "return 6.00" in line and "build 75689" in line
    status, out = check("2s3z", build=69232)
    assert status == 0 and "not comparable" in out and "69232" in out


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [("does not start", "no binary"), ("crashes", "went away after 2"), ("hangs", "after 1 s")],
)
def test_check_fails_where_a_game_does(check, behaviour, message):
    status, out = check("2s3z", "--seconds", "1", behaviour=behaviour)
    assert status == 1 and check.game.closed == 1
    assert re.search(rf"^2s3z +FAILED: .*{message}", out, re.M)
