"""The program from outside: exit statuses, one-line errors, what Sacred records, signals."""

import errno
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from cases import start_child, status_of

from inspo import main as program
from inspo.utils import interrupts
from inspo.utils.checkpoints import save_checkpoint
from inspo.utils.errors import UserError
from inspo.utils.interrupts import GracefulExit, Interrupted
from inspo.utils.provenance import git_commit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run_main(monkeypatch, tmp_path):
    """Calls main with `run.run` replaced; results go to tmp_path/results."""

    def call(run, *words, argv=("--config=bc", "--env-config=smax_offline")):
        monkeypatch.setitem(sys.modules, "inspo.run", types.SimpleNamespace(run=run))
        return program.main([*argv, "with", f"local_results_path={tmp_path / 'results'}", *words])

    return call


def folder_of(tmp_path, name="bc", label="2s3z_medium"):
    (folder,) = (tmp_path / "results/sacred" / name / label).iterdir()
    return folder


def read(path):
    return json.loads(path.read_text())


def test_a_run_is_recorded(run_main, tmp_path):
    seen = {}

    def run(args, logger):
        seen["args"] = args
        logger.log_stat("loss", 0.5, 10)
        logger.info("hello")
        return {"test_return_mean": 1.0}

    assert run_main(run, "seed=7", "map_name=3m", "use_tensorboard=True") == 0
    folder = folder_of(tmp_path, label="3m_medium")
    assert folder.name == "1"
    config = read(folder / "config.json")
    assert (config["seed"], config["map_name"], config["env_args"]["map_name"]) == (7, "3m", "3m")
    run_json = read(folder / "run.json")
    assert (run_json["status"], run_json["result"]) == ("COMPLETED", {"test_return_mean": 1.0})
    metrics = read(folder / "metrics.json")
    assert (metrics["loss"]["values"], metrics["loss"]["steps"]) == ([0.5], [10])
    info = read(folder / "info.json")
    assert info["command_line"][0] == "--config=bc"
    assert info["versions"]["torch"]
    assert "hello" in (folder / "cout.txt").read_text()
    args = seen["args"]
    assert args.unique_token.startswith("bc_seed7_3m_medium_")
    assert args.device in ("cpu", "cuda")
    assert list((tmp_path / "results/tb_logs" / args.unique_token).iterdir())


def test_a_seed_is_drawn_or_that_of_the_checkpoint_and_recorded(run_main, tmp_path, capsys):
    seeds = []
    note = lambda args, logger: seeds.append(args.seed)  # noqa: E731
    assert run_main(note) == run_main(note) == 0
    folder = tmp_path / "results/sacred/bc/2s3z_medium"
    assert [read(folder / n / "config.json")["seed"] for n in "12"] == seeds
    assert seeds[0] != seeds[1]
    save_checkpoint(tmp_path / "model", 5, {}, {"config": {"seed": 123}})
    resume = f"resume={tmp_path / 'model'}"
    assert run_main(note, resume) == 0 and seeds[2] == 123
    save_checkpoint(tmp_path / "model", 6, {}, {"alg": "bc"})
    assert run_main(None, resume) == 2
    assert "which seed" in capsys.readouterr().err
    assert run_main(None, f"resume={tmp_path / 'nowhere'}") == 2
    assert "no checkpoint folder" in capsys.readouterr().err


def test_a_users_error_is_one_line_and_the_run_has_failed(run_main, tmp_path, capsys):
    def run(args, logger):
        raise UserError("datasets/x.h5: there is none")

    assert run_main(run) == 2
    err = capsys.readouterr().err
    assert err.strip().endswith("error: datasets/x.h5: there is none")
    assert "Traceback" not in err
    assert read(folder_of(tmp_path) / "run.json")["status"] == "FAILED"


def test_a_fault_of_ours_keeps_its_traceback(run_main, tmp_path):
    def run(args, logger):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(run)
    assert read(folder_of(tmp_path) / "run.json")["status"] == "FAILED"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_what_was_saved(run_main, tmp_path, capsys, signum, status):
    def run(args, logger):
        with GracefulExit(logger.info) as stop:
            signal.raise_signal(signum)
        assert stop.requested
        raise Interrupted(stop.signum, "saved step 5; go on with resume=x")

    assert run_main(run) == status
    err = capsys.readouterr().err
    assert "interrupted: saved step 5; go on with resume=x" in err
    assert "Traceback" not in err
    assert read(folder_of(tmp_path) / "run.json")["status"] == "INTERRUPTED"


def test_sigterm_outside_of_the_training_loop(run_main, capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert run_main(lambda args, logger: signal.raise_signal(signal.SIGTERM)) == 143
    assert "SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_second_signal_stops_at_once_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="second"), GracefulExit():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_wrong_word_exits_with_2_and_one_line(capsys):  # which ones: test_config.py
    assert program.main(["--config=bc", "with", "batchsize=3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and "'batch_size'" in err


def test_print_config(capsys):
    argv = ["print_config", "--config", "bc", "--env-config", "smax_offline", "with", "lr=1"]
    assert program.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("# --config=bc --env-config=smax_offline")
    assert "\nlr: 1.0\n" in out


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'package')!r}); from inspo import main"
        "; main.main(['--help'])"
        "; assert not {'torch', 'sacred', 'jax', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("--help > /dev/full", 2),
        ("print_config --config=bc > /dev/full", 2),
        ("print_config --config=bc | true", 141),
        ("--help >&-", 0),
    ],
)
def test_output_that_cannot_be_written(words, status):
    command = f"{sys.executable} {ROOT}/src/main.py {words}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == status
    expected = "error: a file, or the output: No space left on device. Make room"
    assert done.stderr.startswith(expected) if status == 2 else not done.stderr
    assert done.stderr.count("\n") == (status == 2)


def test_two_runs_of_one_moment_and_a_sigterm(run_main, tmp_path, capfd):
    """Two processes started together get folders and tokens of their own; both stop cleanly."""

    def run(args, logger):
        with GracefulExit(logger.info) as stop:
            (tmp_path / args.unique_token).touch()
            while not stop.requested:
                time.sleep(0.01)
        raise Interrupted(stop.signum, "saved")

    children = [start_child(lambda: run_main(run, "seed=1")) for _ in range(2)]
    while len(list(tmp_path.glob("bc_seed1_*"))) < 2:
        time.sleep(0.01)
    for child in children:
        os.kill(child, signal.SIGTERM)
    assert [status_of(child) for child in children] == [143, 143]
    err = capfd.readouterr().err
    assert err.count("interrupted: saved") == 2
    assert "Traceback" not in err and "Warning" not in err
    folder = tmp_path / "results/sacred/bc/2s3z_medium"
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert {read(folder / n / "run.json")["status"] for n in "12"} == {"INTERRUPTED"}


def test_an_import_of_epymarls_names_the_new_one(tmp_path, capsys):
    learner = tmp_path / "mine_learner.py"
    learner.write_text("\nfrom components.episode_buffer import EpisodeBatch\n")
    assert interrupts.exit_status(lambda: runpy.run_path(str(learner))) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {learner}, line 2: 'components.episode_buffer'")
    assert message.count("\n") == 1
    assert "from inspo.components.episode_batch import" in message
    with pytest.raises(ModuleNotFoundError, match="nowhere"):  # others are not hidden
        interrupts.exit_status(lambda: __import__("nowhere"))


def test_a_commit_is_dirty_where_the_program_differs_not_where_its_tables_do(tmp_path, monkeypatch):
    def git(*words):
        user = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *user, *words]
        subprocess.run(command, check=True, capture_output=True)

    monkeypatch.setenv("INSPO_COMMIT", "a1b2")  # as in the Docker image
    assert git_commit(tmp_path) == git_commit(None) == "a1b2"
    monkeypatch.delenv("INSPO_COMMIT")
    assert git_commit(tmp_path) is git_commit(None) is None
    git("init")
    for name in ("src/a.py", "results/paper/table.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("old")
    git("add", ".")
    git("commit", "-m", "first")
    clean = git_commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "results/paper/table.md").write_text("new")
    (tmp_path / "untracked").write_text("new")
    assert git_commit(tmp_path) == clean
    (tmp_path / "src/a.py").write_text("new")
    assert git_commit(tmp_path) == f"{clean}-dirty"


# --- a full disk ----------------------------------------------------------------------------------


class Full:
    """From `begin` on there is no room for files with this name."""

    def __init__(self, monkeypatch, name):
        self.name, self.full, self.write = name, False, Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", self)

    def __get__(self, path, kind):
        def write_bytes(content):
            if self.full and path.name.startswith(f".{self.name}."):
                self.write(path, content[:40])  # as much as there was room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return self.write(path, content)

        return write_bytes


def test_no_room_at_the_beginning_starts_no_run(run_main, monkeypatch, tmp_path, capsys):
    disk, started = Full(monkeypatch, "config.json"), []
    disk.full = True
    assert run_main(lambda *given: started.append(given)) == 2
    err = capsys.readouterr().err
    assert "config.json cannot be written: No space left" in err and "Traceback" not in err
    (tmp_path / "file").touch()
    assert program.main(["--config=bc", "with", f"local_results_path={tmp_path}/file/r"]) == 2
    assert "local_results_path" in capsys.readouterr().err and not started


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "info.json"])
@pytest.mark.parametrize("for_ever", [True, False])
def test_a_record_without_room_is_an_error_and_keeps_what_it_held(
    run_main, tmp_path, monkeypatch, capsys, name, for_ever
):
    disk, held = Full(monkeypatch, name), {}

    def run(args, logger):
        observer = logger._sinks[0].__self__.observers[0]
        beat = logger._sinks[0].__self__._emit_heartbeat
        logger.log_stat("loss", 1.0, 0)
        beat()
        held.update(folder=Path(observer.dir), before=(Path(observer.dir) / name).read_text())
        disk.full = True
        logger.log_stat("loss", 2.0, 1)
        beat()
        assert (held["folder"] / name).read_text() == held["before"]
        disk.full = for_ever
        logger.log_stat("loss", 3.0, 2)

    assert run_main(run) == (2 if for_ever else 0)
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.count(f"{name} cannot be written: No space left") >= 1
    assert not list(held["folder"].glob("*.tmp"))
    if for_ever:
        assert err.strip().splitlines()[-1].startswith("error: local_results_path: ")
        assert (held["folder"] / name).read_text() == held["before"]
    else:
        assert read(held["folder"] / "metrics.json")["loss"]["values"] == [1.0, 2.0, 3.0]
        assert read(held["folder"] / "run.json")["status"] == "COMPLETED"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left", "/x"), "/x: No space left. Make room"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "Read-only file system. Check"),
        (MemoryError("x"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 400 bytes"), "out of memory"),
        (OSError(errno.ENOENT, "No such file", "/x"), None),
    ],
)
def test_what_a_machine_refuses_is_one_line_and_other_errors_are_ours(capsys, error, said):
    def refuse():
        raise error

    if said is None:
        with pytest.raises(FileNotFoundError):
            interrupts.exit_status(refuse)
        return
    assert interrupts.exit_status(refuse) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and said in message and message.count("\n") == 1


def test_a_closed_stderr_leads_nowhere_and_never_into_a_file(tmp_path):
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from inspo.utils.interrupts import exit_status
from inspo.utils.errors import UserError
def command():
    with open(sys.argv[2], "w") as file:
        assert file.fileno() > 2
        print("of use to nobody", file=sys.stderr, flush=True)
        raise UserError("nor this")
sys.exit(exit_status(command))
"""
    words = [sys.executable, "-c", program, ROOT / "package", tmp_path / "file"]
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *map(str, words)]
    assert subprocess.run(shell, check=False).returncode == 2
    assert (tmp_path / "file").read_text() == ""
