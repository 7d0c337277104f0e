"""Full disks and read-only folders: what stood before stands, one clear line, status 2.

Each try takes one work (train, resume, fit, collect, convert to each format, mix, split), a small
disk with what earlier works have left there, and a random number of bytes of room; or a disk that
may not be written at all. Fine is a work that ends well, or one that ends with status 2 and one
line with `error:`, and no traceback; either way every file that was whole before still is what it
was, no temporary file is left, and whatever stands under a dataset's or a checkpoint's name is
whole.

The disk is a tmpfs where mounting is allowed (as root, say); elsewhere a limit on the size of files
(EFBIG in place of ENOSPC), and folders without the right to write. The last line says which.

    python tests/campaigns/disks.py --minutes 20 --seed 1
"""

from __future__ import annotations

import contextlib
import hashlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from common import elsewhere, leftovers, parser, report, run, tries, warm_up

from inspo import dataset as dataset_tool
from inspo import main as program
from inspo import run as _  # noqa: F401  (imported once for all the children)
from inspo.offline import load_dataset
from inspo.utils.checkpoints import list_steps, load_checkpoint

SIZE = 4 << 20  # bytes of the disk
QUIET = ["use_progress_bar=False", "test_nepisode=0", "final_test_nepisode=2", "seed=1"]
OFFLINE = ["--env-config=matrix_offline", "with", "map_name=m_ne", "quality=balanced", *QUIET]
SAVING = ["t_max=1024", "save_model_interval=512", "log_interval=256"]
FIT = ["behaviour.updates=4", "behaviour.others_updates=4", "behaviour.eval_interval=2"]
ONLINE = ["--config=qmix", "--env-config=matrix", "with", "map_name=m_ne", *QUIET]

Work = Callable[[Path, Path], int]
"""disk, prepared files -> exit status."""


def train(disk: Path, ready: Path) -> int:
    place = [f"local_results_path={disk / 'results'}", f"datasets_dir={ready}"]
    return program.main(["--config=bc", *OFFLINE, *SAVING, *place])


def generate_and_fit(disk: Path, ready: Path) -> int:
    place = [f"local_results_path={disk / 'results'}", f"datasets_dir={disk / 'data'}"]
    return program.main(["--config=inspo", *OFFLINE, *SAVING, *FIT, *place])


def resume(disk: Path, ready: Path) -> int:
    models = [m for m in (disk / "results" / "models").glob("bc*") if list_steps(m)]
    if not models:
        return train(disk, ready)
    place = [f"local_results_path={disk / 'results'}", f"datasets_dir={ready}"]
    return program.main(["--config=bc", *OFFLINE, *SAVING, *place, f"resume={models[0]}"])


def collect(disk: Path, ready: Path) -> int:
    policy = next((ready / "results" / "models").glob("qmix*"))
    path = disk / f"collected_{len(list(disk.glob('collected*')))}.h5"
    acting = [f"checkpoint_path={policy}", "collect.n_episodes=300", f"collect.path={path}"]
    return program.main([*ONLINE, *acting, f"local_results_path={disk / 'results'}"])


def convert(name: str) -> Work:
    def work(disk: Path, ready: Path) -> int:
        source = ready / "matrix" / "m_ne_balanced.h5"
        return dataset_tool.main(["convert", str(source), str(disk / name), "--force"])

    return work


def mix(disk: Path, ready: Path) -> int:
    parts = [f"{ready / 'matrix' / 'm_ne_balanced.h5'}:40", f"{ready / 'other.h5'}:40"]
    return dataset_tool.main(["mix", *parts, str(disk / "mixed.h5"), "--force"])


def split(disk: Path, ready: Path) -> int:
    source = ready / "matrix" / "m_ne_balanced.h5"
    return dataset_tool.main(
        ["split", str(source), str(disk / "one.h5"), str(disk / "two.h5"), "--force"]
    )


WORKS: dict[str, Work] = {
    "train": train,
    "fit": generate_and_fit,
    "resume": resume,
    "collect": collect,
    "to_h5": convert("x.h5"),
    "to_folder": convert("x"),
    "to_vault": convert("x.vlt"),
    "mix": mix,
    "split": split,
}

# --------------------------------------------------------------------------------------------------
# Disks


class Tmpfs:
    """A small disk of its own. Only root may mount one."""

    name = "tmpfs"

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={SIZE},nr_inodes=4096", "none")

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, str(self.folder)], check=True, capture_output=True)

    @contextlib.contextmanager
    def full(self, room: int) -> Iterator[Callable[[Callable[[], int]], int]]:
        """So many bytes are free."""
        ballast = self.folder / "ballast"
        free = shutil.disk_usage(self.folder).free
        ballast.write_bytes(bytes(max(free - room, 0)))
        yield lambda work: work()
        ballast.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[Callable[[Callable[[], int]], int]]:
        self._mount("-o", "remount,ro")
        yield lambda work: work()
        self._mount("-o", f"remount,rw,size={SIZE}")

    def close(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)


class Limits:
    """A folder in which files cannot be larger than the room, or nothing can be made."""

    name = "limits"

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    @contextlib.contextmanager
    def full(self, room: int) -> Iterator[Callable[[Callable[[], int]], int]]:
        def limited(work: Callable[[], int]) -> int:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG in its place
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            return work()

        yield limited

    @contextlib.contextmanager
    def read_only(self) -> Iterator[Callable[[Callable[[], int]], int]]:
        folders = [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(0o500)
        yield lambda work: work()
        for path in folders:
            path.chmod(0o700)

    def close(self) -> None:
        pass


def make_disk(folder: Path, limits: bool) -> Tmpfs | Limits:
    if not limits:
        try:
            return Tmpfs(folder)
        except (subprocess.CalledProcessError, OSError):
            folder.rmdir()
    return Limits(folder)


# --------------------------------------------------------------------------------------------------
# One try


def contents(folder: Path) -> dict[Path, str]:
    """Each file below a folder and the hash of its content."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "ballast"
    }


def faults_of(disk: Path, status: int, text: str, before: dict[Path, str], name: str) -> list[str]:
    faults = []
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if status not in (0, 2):
        faults.append(f"status {status}")
    if "Traceback" in text:
        faults.append("a traceback")
    if (status == 2) != (len(errors) == 1):
        faults.append(f"{len(errors)} lines with 'error:' and status {status}")
    faults += [f"left: {path}" for path in leftovers(disk)]
    after = contents(disk)
    replaced = {"resume"}  # works that may go on with what was there
    for path, digest in before.items():
        mine = status == 0 or name in replaced
        own = mine and "models" in path.parts
        own |= status == 0 and "x.vlt" in path.parts  # a vault names its files by their content
        if path not in after and not own:
            faults.append(f"gone: {path}")
        elif after.get(path, digest) != digest and status != 0 and "results" not in path.parts:
            faults.append(f"changed: {path}")
    return faults + elsewhere(lambda: broken(disk))


def broken(disk: Path) -> list[str]:
    """What stands under a final name and is not whole."""
    faults = []
    datasets = [*disk.rglob("*.h5"), *(disk / name for name in ("x", "x.vlt"))]
    for path in (path for path in datasets if path.exists()):
        try:
            load_dataset(path)
        except Exception as error:
            faults.append(f"broken: {error}")
    for model in (disk / "results" / "models").glob("*"):
        for step in list_steps(model):
            try:
                load_checkpoint(model / str(step))
            except Exception as error:
                faults.append(f"broken: {error}")
    for record in (disk / "results" / "sacred").rglob("*.json"):
        if not record.read_text().strip().endswith("}"):
            faults.append(f"broken: {record}")
    return faults


def prepare(ready: Path, log: Path) -> None:
    """A dataset, another one and a policy, on a disk with room."""
    place = [f"local_results_path={ready / 'results'}", f"datasets_dir={ready}"]
    source = ready / "matrix" / "m_ne_balanced.h5"
    for work in (
        lambda: program.main(["--config=bc", *OFFLINE, "t_max=256", *place]),
        lambda: program.main([*ONLINE, "t_max=64", *place]),
        lambda: dataset_tool.main(
            ["subsample", str(source), str(ready / "other.h5"), "--episodes=60"]
        ),
    ):
        status, text = run(work, log)
        if status:
            raise SystemExit(text)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--limits", action="store_true", help="mount nothing, limit files' sizes")
    given = options.parse_args()
    warm_up()
    rng = np.random.default_rng(given.seed)
    figures: Counter[str] = Counter(tries=0, full=0, read_only=0, ended_well=0, refused=0, faults=0)
    with tempfile.TemporaryDirectory(prefix="disks-") as folder:
        place = Path(folder).resolve()
        prepare(place / "ready", place / "log")
        disk = make_disk(place / "disk", given.limits)
        try:
            for number in tries(given.minutes):
                one_try(disk, place, number, rng, figures)
        finally:
            disk.close()
    report(f"disks ({disk.name})", figures)
    return 1 if figures["faults"] else 0


def one_try(
    disk: Tmpfs | Limits, place: Path, number: int, rng: np.random.Generator, figures: Counter[str]
) -> None:
    if number % 8 == 0:
        for path in disk.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    name = str(rng.choice(list(WORKS)))
    kind = "read_only" if rng.random() < 0.15 else "full"
    room = int(np.exp(rng.uniform(np.log(512), np.log(1 << 20))))
    before, log = contents(disk.folder), place / "log"
    log.unlink(missing_ok=True)
    with disk.read_only() if kind == "read_only" else disk.full(room) as inside:
        status, text = run(lambda: inside(lambda: WORKS[name](disk.folder, place / "ready")), log)
    figures.update([kind, "tries", "ended_well" if status == 0 else "refused"])
    for fault in faults_of(disk.folder, status, text, before, name):
        figures["faults"] += 1
        where = f"{room} bytes of room" if kind == "full" else kind
        print(f"try {number}, {name}, {where}: {fault}", file=sys.stderr, flush=True)
        print("\n".join("    " + line[:300] for line in text.splitlines()[-4:]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
