"""The image without an engine: its scripts run against a fake docker and a local web server."""

from __future__ import annotations

import http.server
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import types
import zipfile
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml
from inspo.main import git_commit
from inspo.utils.config import load_config

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
SCRIPTS = sorted(DOCKER.glob("*.sh"))
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
BUILD = (DOCKER / "build.sh").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
FETCHES = [pytest.mark.skipif(not shutil.which(name), reason=f"needs {name}") for name in
           ("curl", "unzip")]  # fmt: skip


def run(script, *args, env=None, **options):
    """Run a script of docker/ in a bare environment; output as text."""
    return subprocess.run(
        ["bash", str(script), *map(str, args)], env={"PATH": os.environ["PATH"], **(env or {})},
        capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


# --------------------------------------------------------------------- files against each other


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert os.access(script, os.X_OK)


def stages() -> dict[str, list[str]]:
    """Instructions of each stage of the Dockerfile, in order, comments and line breaks removed."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ")
    found: dict[str, list[str]] = {"": []}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            name = re.fullmatch(r"FROM \S+ AS (\w+)", line)[1]
            found[name] = []
        found[list(found)[-1]].append(line)
    return found


def test_dockerfile_copies_what_is_there_and_is_sent():
    ignored = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"
    ]
    sources = set()
    for line in chain(*stages().values()):
        if line.startswith("COPY ") and "--from" not in line:
            sources |= set(line.split()[1:-1])
    assert {"requirements.txt", "docker/install_game.sh", "."} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not any(source == entry or source.startswith(entry + "/") for entry in ignored)


def test_what_git_ignores_stays_out_of_the_image():
    ignored = set((ROOT / ".dockerignore").read_text().split())
    for line in (ROOT / ".gitignore").read_text().split():
        assert {line.rstrip("/"), "**/" + line.rstrip("/")} & ignored, line


def test_a_change_of_code_rebuilds_nothing_heavy():
    names = list(stages())
    assert names[-1] == "run"  # what is built when no target is named
    for name, lines in stages().items():
        code = [i for i, line in enumerate(lines) if line.startswith("COPY . ")]
        assert bool(code) == (name in ("run", "tests")), name
        if code:
            assert lines[0] == f"FROM base AS {name}"
            assert not any("pip" in line or "install_" in line for line in lines[code[0] :])
    assert "pip install -r requirements.txt -r requirements-sc2.txt -r docker/requirements.txt" in (
        " ".join(stages()["packages"])
    )


def test_the_image_ends_as_another_user_than_root():
    for name in ("run", "tests"):
        users = [line for line in stages()[name] if line.startswith("USER ")]
        assert users[-1] == "USER 1000:1000"


def test_python_is_the_project_s():
    tag = re.search(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)-slim", DOCKERFILE, re.M)[1]
    assert f'needed_version="{tag}"' in (ROOT / "scripts/environment.sh").read_text()


def test_build_arguments_exist():
    known = {line.split()[1].split("=")[0] for line in chain(*stages().values())
             if line.startswith("ARG ")}  # fmt: skip
    given = set(re.findall(r"--build-arg (\w+)=", BUILD))
    assert {"ACCEPT_BLIZZARD_LICENCE", "SC2_VERSION", "TORCH_INDEX", "COMMIT"} <= given <= known
    for service in COMPOSE["services"].values():
        assert set(service["build"]["args"]) <= known
    # What the installer reads has to be declared in the stage that runs it, or it is not passed.
    declared = {line.split()[1].split("=")[0] for line in stages()["game"] if line[:4] == "ARG "}
    read = set(re.findall(r"\$\{(SC2_\w+|ACCEPT_\w+):-", (DOCKER / "install_game.sh").read_text()))
    assert read == declared


def pins(*names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        for line in (ROOT / name).read_text().splitlines():
            line = line.split("#")[0].strip()
            if line and not line.startswith("-r "):
                package, _, version = line.partition(" @ " if " @ " in line else "==")
                assert version, f"{name}: {line} is not pinned"
                assert package.lower() not in found, f"{package} is pinned twice"
                found[package.lower()] = version
    return found


def test_requirements_are_pinned_once():
    found = pins("requirements.txt", "requirements-sc2.txt", "docker/requirements.txt")
    assert re.fullmatch(r"git\+https://\S+/smac(\.git)?@[0-9a-f]{40}", found["smac"])
    major, minor, _ = map(int, found["tensorboard"].split("."))
    assert (major, minor) < (2, 21) and found["protobuf"].startswith("3.20.")


def test_compose_has_the_services_and_their_stages():
    services = COMPOSE["services"]
    assert set(services) == {"run", "run-gpu", "tests", "tensorboard"}
    for name, service in services.items():
        build = service["build"]
        assert (DOCKER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).exists()
        assert build["target"] == ("tests" if name == "tests" else "run")
        assert [v["target"] for v in service["volumes"]] == (
            [] if name == "tests" else ["/inspo/results", "/inspo/datasets"]
        )
    assert services["run"]["entrypoint"] == ["python", "src/main.py"]
    reserved = services["run-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved[0]["capabilities"] == ["gpu"] and "deploy" not in services["run"]
    assert [name for name, s in services.items() if "profiles" not in s] == ["tensorboard"]


def test_commands_on_the_pages_name_what_there_is():
    text = "".join((ROOT / page).read_text() for page in ("README.md", "docs/starcraft.md"))
    lines = [line.split("  #")[0] for line in re.findall(r"^docker/.*", text, re.M)]
    assert len(lines) > 12
    for line in lines:
        program, *words = shlex.split(line)
        assert (ROOT / program).exists()
        if program == "docker/build.sh":
            own = words[: words.index("--")] if "--" in words else words
            for option in (word for word in own if word.startswith("--")):
                assert re.search(rf"^ +(--\S+ \| )?{option}( \| --\S+)?\)", BUILD, re.M), line
        elif program == "docker/run.sh" and words[:2] == ["--", "python"]:
            assert (ROOT / words[2]).exists(), line
        elif program == "docker/run.sh" and words[:1] != ["--"]:
            load_config(words)


def test_runs_in_the_image_record_its_commit(tmp_path, monkeypatch):
    assert "ENV INSPO_COMMIT=$COMMIT" in stages()["run"]
    monkeypatch.setenv("INSPO_COMMIT", "c0ffee-dirty")
    assert git_commit(tmp_path) == "c0ffee-dirty"  # no checkout
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(ROOT) == "c0ffee-dirty"  # no git
    monkeypatch.setenv("INSPO_COMMIT", "")
    assert git_commit(tmp_path) is None


# ------------------------------------------------------------------------ run.sh and build.sh


@pytest.fixture
def machine(tmp_path):
    """A machine with a copy of docker/ and a docker that notes what it was asked."""
    shutil.copytree(DOCKER, tmp_path / "project" / "docker")
    programs = tmp_path / "bin"
    programs.mkdir()
    notes = tmp_path / "notes"

    def program(name, body):
        (programs / name).write_text("#!/bin/bash\n" + body)
        (programs / name).chmod(0o755)

    def call(script, *args, **env):
        notes.unlink(missing_ok=True)
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes), **env}
        done = run(tmp_path / "project" / "docker" / script, *args, env=env)
        asked = notes.read_text().split("\0")[:-1] if notes.exists() else None
        return done, asked

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


def test_run_forwards_its_arguments_to_main(machine):
    args = ["--config=inspo", "--env-config=sc2_offline", "with", "map_name=5m_vs_6m", "label=a b"]
    done, asked = machine("run.sh", *args)
    assert done.returncode == 0, done.stderr
    image = asked.index("inspo:sc2-4.10")
    assert asked[0] == "run" and asked[image + 1 :] == ["python", "src/main.py", *args]
    options = asked[1:image]
    assert options[options.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert "--init" in options and "--rm" in options and "--gpus" not in options
    for folder in ("results", "datasets"):
        place = machine.project / folder
        assert place.is_dir()  # made by the caller: docker would make it as root
        assert f"type=bind,source={place},target=/inspo/{folder}" in options
    assert "--tty" not in options  # output is a pipe here


def test_run_runs_other_commands(machine):
    done, asked = machine("run.sh", "--", "python", "src/dataset.py", "list", INSPO_IMAGE="mine")
    assert done.returncode == 0
    assert asked[asked.index("mine") + 1 :] == ["python", "src/dataset.py", "list"]
    done, asked = machine("run.sh", "--")
    assert done.returncode == 2 and asked is None and "bash" in done.stderr


def test_run_hands_on_the_exit_status(machine):
    assert machine("run.sh", "--help", STATUS="7")[0].returncode == 7


def test_run_passes_gpus_where_there_are_any(machine):
    machine.program("nvidia-smi", "exit 0")
    asked = machine("run.sh", "x", RUNTIME="nvidia")[1]
    assert asked[asked.index("--gpus") + 1] == "all"
    asked = machine("run.sh", "x", RUNTIME="nvidia", INSPO_GPUS="device=1")[1]
    assert asked[asked.index("--gpus") + 1] == "device=1"
    assert "--gpus" not in machine("run.sh", "x", RUNTIME="nvidia", INSPO_GPUS="none")[1]
    done, asked = machine("run.sh", "x")  # a GPU, but docker cannot pass it
    assert "--gpus" not in asked and "toolkit" in done.stderr


def test_run_without_an_image_says_how_to_get_one(machine):
    done, asked = machine("run.sh", "x", INSPO_IMAGE="absent")
    assert done.returncode == 2 and asked is None and "docker/build.sh" in done.stderr


def test_build_needs_the_licence(machine):
    for args in ([], ["--torch-index", "http://x/cpu"], ["--sc2", "4.10"]):
        done, asked = machine("build.sh", *args)
        assert done.returncode == 2 and asked is None
        assert "--accept-licence" in done.stderr and "License" in done.stderr


def test_build_asks_for_what_was_said(machine):
    done, asked = machine("build.sh", "--accept-licence")
    assert done.returncode == 0 and "WARNING" not in done.stderr
    assert asked[0] == "build" and asked[-1] == str(machine.project)
    assert asked[asked.index("--tag") + 1] == "inspo:sc2-4.10"
    assert {"ACCEPT_BLIZZARD_LICENCE=yes", "SC2_VERSION=4.10", "TORCH_INDEX="} <= set(asked)

    done, asked = machine(
        *("build.sh", "--accept-licence", "--sc2", "4.6.2", "--torch-index", "http://x/cpu"),
        *("--", "--build-arg", "SC2_URL=u"),
    )
    assert "not comparable" in done.stderr
    assert {"SC2_VERSION=4.6.2", "SC2_URL=u", "inspo:sc2-4.6.2"} <= set(asked)
    assert "TORCH_INDEX=http://x/cpu" in asked


@pytest.mark.parametrize("args", [["--sc2", "5.0"], ["--sc2"], ["--acept-licence"], ["4.10"]])
def test_build_refuses_what_it_does_not_know(machine, args):
    done, asked = machine("build.sh", "--accept-licence", *args)
    assert done.returncode == 2 and asked is None and args[0] in done.stderr


# -------------------------------------------------------------------------------- the installers


def game(build: int = 75689) -> bytes:
    """An archive as Blizzard packs it, a few kB of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (
            (f"Versions/Base{build}/SC2_x64", b"#!/bin/sh\n"),
            ("Libs/noise", np.random.default_rng(0).bytes(50_000)),
        ):
            archive.writestr(zipfile.ZipInfo(f"StarCraftII/{name}"), content)  # without the time
    return file.getvalue()


class Archive(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`, with the faults that `server.faults` lists, one a request."""

    def do_GET(self):
        server, content = self.server, self.server.content
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        server.asked.append(start)
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + 20_000 if fault == "break" else start if fault == "nothing" else len(content)
        self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def install(tmp_path):
    """Runs install_game.sh against a server of its own; returns (finished process, folder)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    server.asked = []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def call(content, faults=(), **env):
        server.content, server.faults = content, list(faults)
        server.asked.clear()
        env = {
            "ACCEPT_BLIZZARD_LICENCE": "yes", "PAUSE": "0",
            "SC2_URL": f"http://127.0.0.1:{server.server_port}/SC2.zip",
            "SC2_SHA256": sha256(content).hexdigest(), **env,
        }  # fmt: skip
        folder = tmp_path / "StarCraftII"
        return run(DOCKER / "install_game.sh", folder, env=env), folder

    call.asked = server.asked
    yield call
    server.shutdown()
    server.server_close()


def refused(done, folder):
    """It failed with one message, and nothing that looks like a game is left."""
    assert done.returncode == 1 and not folder.exists()
    assert len(re.findall("^error: ", done.stderr, re.M)) == 1
    return done.stderr


class TestInstallGame:
    pytestmark = FETCHES

    def test_installs_and_records(self, install):
        content = game()
        done, folder = install(content)
        assert done.returncode == 0, done.stderr
        assert os.access(folder / "Versions/Base75689/SC2_x64", os.X_OK)
        assert (folder / "Libs/noise").stat().st_size == 50_000
        record = (folder / "installed.txt").read_text()
        assert record in done.stdout and record.startswith("StarCraft II 4.10\n")
        assert f"{sha256(content).hexdigest()} (checked)" in record and str(len(content)) in record
        assert [path.name for path in folder.parent.iterdir()] == ["StarCraftII"]
        # A second time there is nothing to do; another version does not replace it.
        done, _ = install(content)
        assert done.returncode == 0 and install.asked == []
        done, _ = install(content, SC2_VERSION="4.6.2")
        assert done.returncode == 1 and "exists" in done.stderr

    @pytest.mark.parametrize("word", ["no", "", "true"])
    def test_nothing_is_asked_for_without_the_licence(self, install, word):
        done, folder = install(game(), ACCEPT_BLIZZARD_LICENCE=word)
        assert "AI_AND_MACHINE_LEARNING_LICENSE" in refused(done, folder) and install.asked == []

    def test_the_hash_is_held(self, install):
        done, folder = install(game(), SC2_SHA256="0" * 64)
        message = refused(done, folder)
        assert "0" * 64 in message and sha256(game()).hexdigest() in message
        assert list(folder.parent.rglob("*.zip")) == []  # or the next attempt would go on with it

    def test_the_known_hash_is_the_default(self, install):
        done, folder = install(game(), SC2_SHA256="")
        assert "1052f249f30a242b" in refused(done, folder)

    def test_an_unknown_hash_is_recorded(self, install):
        done, folder = install(game(69232), SC2_VERSION="4.6.2", SC2_SHA256="")
        assert done.returncode == 0, done.stderr
        assert "not the game that CFCQL's data" in done.stderr
        record = (folder / "installed.txt").read_text()
        assert sha256(game(69232)).hexdigest() + " (recorded, not checked)" in record

    def test_goes_on_after_a_break(self, install):
        done, _ = install(game(), faults=["break", 503, "break"])
        assert done.returncode == 0, done.stderr
        assert install.asked == [0, 20_000, 20_000, 40_000]

    @pytest.mark.parametrize("known", [True, False])
    def test_a_truncated_download_is_refused_and_gone_on_with(self, install, known):
        hashes = {} if known else {"SC2_SHA256": "any"}
        done, folder = install(game(), faults=["break"] + ["nothing"] * 8, **hashes)
        assert "goes on with what has come" in refused(done, folder)
        done, _ = install(game(), **hashes)
        assert done.returncode == 0 and install.asked == [20_000]

    def test_a_truncated_archive_is_refused(self, install):
        done, folder = install(game()[:-5_000], SC2_SHA256="any")
        assert "not a whole zip archive" in refused(done, folder)

    def test_a_damaged_archive_is_refused(self, install):
        content = bytearray(game())
        content[20_000] ^= 1
        done, folder = install(bytes(content), SC2_SHA256="any")
        assert "not a whole zip archive" in refused(done, folder)

    def test_a_page_is_no_archive(self, install):
        done, folder = install(b"<html>please log in</html>", SC2_SHA256="any")
        assert "not a whole zip archive" in refused(done, folder)

    def test_an_http_error_is_named_at_once(self, install):
        done, folder = install(game(), faults=[404])
        assert "HTTP status 404" in refused(done, folder) and install.asked == [0]

    def test_another_archive_is_no_starcraft(self, install):
        done, folder = install(game(12345))
        assert "Versions/Base75689/SC2_x64" in refused(done, folder)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_maps_come_from_the_pinned_commit(tmp_path):
    smac = tmp_path / "smac"
    maps = smac / "smac/env/starcraft2/maps/SMAC_Maps"
    maps.mkdir(parents=True)

    def git(*args):
        words = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(smac), *args]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    for name in ("2s3z", "3s_vs_5z", "5m_vs_6m", "6h_vs_8z", "3m"):
        (maps / f"{name}.SC2Map").write_text(f"old {name}")
    git("add", ".")
    git("commit", "--quiet", "--message", "pinned")
    commit = git("rev-parse", "HEAD")
    (maps / "2s3z.SC2Map").write_text("new")
    git("commit", "--quiet", "--all", "--message", "later")

    project = tmp_path / "project"
    (project / "docker").mkdir(parents=True)
    script = Path(shutil.copy(DOCKER / "install_maps.sh", project / "docker"))
    pin = project / "requirements-sc2.txt"
    folder = tmp_path / "game" / "Maps" / "SMAC_Maps"

    pin.write_text("smac @ git+https://example.invalid/smac.git@main\n")
    done = run(script, folder)
    assert done.returncode == 1 and "pins no smac" in done.stderr and not folder.exists()

    pin.write_text(f"pysc2==4.0.0\nsmac @ git+file://{smac}@{commit}  # the environment\n")
    for _ in range(2):  # a second time replaces the first
        done = run(script, folder)
        assert done.returncode == 0, done.stderr
    assert (folder / "2s3z.SC2Map").read_text() == "old 2s3z"
    assert len(list(folder.glob("*.SC2Map"))) == 5 and "5 maps" in done.stdout
    record = (folder / "installed.txt").read_text()
    assert commit in record and sha256(b"old 3m").hexdigest() in record
    assert [path.name for path in folder.parent.iterdir()] == ["SMAC_Maps"]


# --------------------------------------------------------------------------------------- check.py


class Game:
    """Of smac.env.StarCraft2Env what check.py uses: an episode of four steps."""

    behaviour = "plays"
    closed = 0

    def __init__(self, map_name, seed):
        self.steps = 0
        self._controller = types.SimpleNamespace(
            ping=lambda: types.SimpleNamespace(game_version="4.10.0", base_build=75689)
        )

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
    smac = types.ModuleType("smac.env")
    smac.StarCraft2Env = Game
    monkeypatch.setitem(sys.modules, "smac", types.ModuleType("smac"))
    monkeypatch.setitem(sys.modules, "smac.env", smac)
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(Game, "closed", 0)

    def call(behaviour, *args):
        monkeypatch.setattr(Game, "behaviour", behaviour)
        monkeypatch.setattr(sys, "argv", ["check.py", *args])
        status = module.main()
        return status, capsys.readouterr().out

    return call


def test_check_plays_the_four_maps(check):
    status, out = check("plays")
    assert status == 0 and Game.closed == 4 and "WARNING" not in out
    for name in ("2s3z", "3s_vs_5z", "5m_vs_6m", "6h_vs_8z"):
        line = re.search(rf"^{name} .*", out, re.M)[0]
        assert "steps 4" in line and "return 6.00" in line and "build 75689" in line
    import torch

    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", out, re.M)
    assert re.search(r"^SC2PATH .*nowhere: missing$", out, re.M)


def test_check_warns_of_another_game(check, monkeypatch):
    original = Game.__init__

    def older(self, **args):
        original(self, **args)
        self._controller = types.SimpleNamespace(
            ping=lambda: types.SimpleNamespace(game_version="4.6.2", base_build=69232)
        )

    monkeypatch.setattr(Game, "__init__", older)
    status, out = check("plays", "2s3z")
    assert status == 0 and "not comparable" in out and "69232" in out


def test_check_looks_for_libraries(check, monkeypatch, tmp_path):
    folder = tmp_path / "Versions" / "Base75689"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "ldd").write_text(
        "#!/bin/sh\necho ' liba.so => not found'; echo ' libb.so => /lib'\n"
    )
    (tmp_path / "ldd").chmod(0o755)
    (folder / "SC2_x64").write_bytes(b"\x7fELF")
    assert re.search("^Base75689 +shared libraries missing: liba.so$", check("plays")[1], re.M)
    (folder / "SC2_x64").write_text("#!/bin/sh")
    assert re.search("^Base75689 +a stand-in, not StarCraft II$", check("plays")[1], re.M)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [("does not start", "no binary"), ("crashes", "went away after 2"), ("hangs", "after 1 s")],
)
def test_check_fails_where_a_game_does(check, behaviour, says):
    status, out = check(behaviour, "2s3z", "--seconds", "1")
    assert status == 1 and Game.closed == 1
    assert re.search(rf"^2s3z +FAILED: .*{says}", out, re.M)
