"""Does the game work here? `docker/run.sh -- python docker/check.py [MAP ...] [--seconds N]`

Says which versions are installed, then plays one episode with random actions on each of the
paper's maps. Exit status 0 if all were played to their end, 1 otherwise. Works outside the image
as well, where SC2PATH and requirements-sc2.txt are in place. Of this project it uses nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

import numpy as np

MAPS = ("2s3z", "3s_vs_5z", "5m_vs_6m", "6h_vs_8z")
PACKAGES = ("pysc2", "s2clientprotocol", "protobuf", "numpy", "torch", "jax")
COMPARABLE = 75689  # the build of 4.10, which CFCQL's data were recorded on


class Overdue(Exception):
    """The episode took longer than it may."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("maps", nargs="*", default=MAPS, metavar="MAP")
    parser.add_argument("--seconds", type=int, default=300, help="limit of one episode (300)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    for name, value in installed().items():
        print(f"{name:18}{value}")
    failed, builds = [], set()
    for name in args.maps:
        try:
            result = play(name, args.seed, args.seconds)
        except (Exception, SystemExit) as error:
            if not isinstance(error, Overdue):
                traceback.print_exc()
            print(f"{name:18}FAILED: {type(error).__name__}: {error}", flush=True)
            failed.append(name)
        else:
            builds.add(result.pop("build"))
            print(f"{name:18}" + ", ".join(f"{k} {v}" for k, v in result.items()), flush=True)

    for build in sorted(builds - {COMPARABLE}):
        print(
            f"WARNING: the game is build {build}, not 4.10's {COMPARABLE}: win rates are not "
            "comparable with those of CFCQL's data."
        )
    if failed:
        print(f"error: {', '.join(failed)} failed; docs/starcraft.md has a list of causes")
        return 1
    print(f"all {len(args.maps)} maps were played to the end")
    return 0


def installed() -> dict[str, str]:
    """What is installed, by name; "missing" where something is not."""
    found = {"python": platform.python_version()}
    found["system"] = platform.platform()
    found |= {name: version(name) for name in PACKAGES}
    found["smac"] = smac_commit()
    found["cuda"] = cuda()
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    found["SC2PATH"] = str(folder) if folder.is_dir() else f"{folder}: missing"
    for path in (folder / "installed.txt", folder / "Maps" / "SMAC_Maps" / "installed.txt"):
        if path.exists():
            found[path.parent.name] = "; ".join(
                " ".join(line.split()) for line in path.read_text().splitlines()[:5]
                if not line.endswith(".SC2Map")
            )  # fmt: skip
    for binary in sorted(folder.glob("Versions/Base*/SC2_x64")):
        found[binary.parent.name] = libraries(binary, folder / "Libs")
    return found


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def smac_commit() -> str:
    """The commit that pip installed smac from. PyPI's package of that name is another one."""
    try:
        origin = json.loads(metadata.distribution("smac").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        return "missing"
    return origin.get("vcs_info", {}).get("commit_id") or f"of unknown origin {origin.get('url')}"


def cuda() -> str:
    try:
        import torch
    except ImportError:
        return "unknown without torch"
    if torch.cuda.is_available():
        return f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}"
    return f"no GPU (torch was built for {torch.version.cuda or 'the CPU'})"


def libraries(binary: Path, own: Path) -> str:
    """Whether it is the real game, and the system has every shared library that it asks for."""
    with open(binary, "rb") as program:
        if program.read(4) != b"\x7fELF":  # Blizzard's is; stand-ins for trials are scripts
            return "a stand-in, not StarCraft II"
    path = ":".join(filter(None, (os.environ.get("LD_LIBRARY_PATH"), str(own))))
    listed = subprocess.run(
        ["ldd", str(binary)], env={**os.environ, "LD_LIBRARY_PATH": path},
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    missing = [line.split("=>")[0].strip() for line in listed.splitlines() if "not found" in line]
    return f"shared libraries missing: {', '.join(missing)}" if missing else "libraries found"


def play(name: str, seed: int, seconds: int) -> dict:
    """One episode with uniformly random available actions. Raises if it has no regular end."""
    from smac.env import StarCraft2Env

    def overdue(signum, frame):
        raise Overdue(f"not at its end after {seconds} s")

    signal.signal(signal.SIGALRM, overdue)
    signal.alarm(seconds)
    env = StarCraft2Env(map_name=name, seed=seed)
    try:
        rng = np.random.default_rng(seed)
        began = time.perf_counter()
        env.reset()
        launched = time.perf_counter()
        game = env._controller.ping()
        steps, total, done, info = 0, 0.0, False, {}
        while not done:
            mask = np.asarray(env.get_avail_actions(), dtype=float)
            actions = (rng.random(mask.shape) * mask).argmax(axis=1)
            reward, done, info = env.step(actions)
            steps, total = steps + 1, total + reward
        played = time.perf_counter() - launched
        if "battle_won" not in info:  # SMAC's way to say that the connection broke
            raise RuntimeError(f"the game went away after {steps} steps")
        shapes = env.get_env_info()
        return {
            "build": game.base_build,
            "game": f"{game.game_version} (build {game.base_build})",
            "agents": shapes["n_agents"], "actions": shapes["n_actions"],
            "obs": shapes["obs_shape"], "state": shapes["state_shape"],
            "steps": steps, "return": f"{total:.2f}", "won": bool(info["battle_won"]),
            "launched in": f"{launched - began:.1f} s", "steps/s": f"{steps / played:.0f}",
        }  # fmt: skip
    finally:
        signal.alarm(0)
        env.close()


if __name__ == "__main__":
    sys.exit(main())
