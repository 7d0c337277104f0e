"""The engine of grids: small real runs, a failing one, a stopped one, and the pure parts."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from inspo.evaluation import grid
from inspo.evaluation.grid import (
    Cell,
    Failure,
    GridReport,
    differences,
    first_share_in,
    last_lines,
    progress_in,
    read_result,
    resumable,
    run_grid,
)
from inspo.evaluation.jobs import JobIsBusy, LocalLauncher
from inspo.evaluation.starcraft import training_hours
from inspo.utils.errors import ConfigError, UserError

SRC = Path(__file__).resolve().parents[1] / "package"
# Five updates of BC on a matrix game: most of a cell's time is Python starting.
TINY = {"map_name": "xor", "quality": "b", "t_max": 2560, "final_test_nepisode": 7}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


def cell(data, name="bc/seed0", algorithm="bc", **overrides):
    overrides = {**TINY, "datasets_dir": str(data), "seed": 0, **overrides}
    return Cell(name, algorithm, "matrix_offline", overrides)


@pytest.fixture(scope="module")
def ran(data, tmp_path_factory):
    """A grid of two good cells around a bad one, run two at a time."""
    folder = tmp_path_factory.mktemp("grid")
    cells = [
        cell(data),
        cell(data, "bad", quality="no_such_quality"),
        cell(data, "bc/seed1", seed=1),
    ]
    seen = []
    report = run_grid(
        cells,
        LocalLauncher(2),
        folder,
        on_finished=lambda c, r: seen.append((c.id, r)),
        progress=False,
    )
    return folder, cells, report, dict(seen)


def test_a_failing_cell_is_reported_and_stops_nothing(ran):
    folder, _, report, seen = ran
    assert sorted(report.finished) == sorted(seen) == ["bc/seed0", "bc/seed1"]
    assert report.reused == []
    failure = report.failed["bad"]
    assert (failure.status, failure.log) == (2, folder / "bad" / "log.txt")
    assert failure.words.startswith("error: ") and "no_such_quality" in failure.words
    assert "no_such_quality" in failure.log.read_text()
    assert str(failure.log) in str(failure)


def test_a_result_says_what_was_run_and_what_came_out(ran):
    folder, cells, _, seen = ran
    result = read_result(folder, cells[0])
    assert result == seen["bc/seed0"]
    assert (result.seed, result.t_env, result.updates, result.sessions) == (0, 2560, 5, 1)
    assert result.config["map_name"] == "xor"
    assert "quality=b" in result.command
    assert result.final == result.tests[-1]
    assert [test["t_env"] for test in result.tests] == [0, 2560]
    assert {"test_expected_return", "test_joint_00"} <= set(result.final)
    assert len(result.raw["returns"]) == len(result.raw["lengths"]) == 7
    assert result.dataset["episodes"] == 1200
    assert result.updates_of(1280) == 2.5
    assert result.hours > 0 and result.model_folder.is_dir()
    assert read_result(folder, cells[1]) is None


def test_what_is_finished_is_not_run_again(ran, monkeypatch):
    folder, cells, _, _ = ran

    def never(*args):
        raise AssertionError("a finished cell was started")

    monkeypatch.setattr(grid, "_start", never)
    good = [cells[0], cells[2]]
    report = run_grid(good, LocalLauncher(2), folder, progress=False)
    assert (report.reused, report.finished, report.failed) == (["bc/seed0", "bc/seed1"], [], {})


def test_another_configuration_in_the_folder_is_an_error(ran):
    folder, cells, _, _ = ran
    other = replace(cells[0], overrides={**cells[0].overrides, "lr": 0.1})
    with pytest.raises(UserError, match=r"another configuration: lr was .* and is 0\.1"):
        run_grid([other], LocalLauncher(1), folder)
    elsewhere = {**cells[0].overrides, "datasets_dir": "elsewhere", "label": "mine"}
    assert read_result(folder, replace(cells[0], overrides=elsewhere)) is not None


SCRIPT = """
import json, sys
sys.path.insert(0, {src!r})
from inspo.evaluation.grid import Cell, run_grid
from inspo.evaluation.jobs import LocalLauncher
from inspo.utils.interrupts import Interrupted
cells = [Cell(*words) for words in json.loads({cells!r})]
try:
    run_grid(cells, LocalLauncher(2), {folder!r}, progress=False)
except Interrupted as stop:
    print("stopped:", stop)
    sys.exit(stop.exit_status)
"""


def test_a_stopped_grid_saves_and_the_second_call_goes_on(data, tmp_path):
    long = cell(data, "long", t_max=300_000, save_model_interval=25_600, test_interval=300_000)
    waiting = cell(data, "waiting", seed=1)
    words = [(c.id, c.algorithm, c.environment, dict(c.overrides)) for c in (long, long, waiting)]
    words[1] = ("long2", *words[1][1:])
    text = SCRIPT.format(src=str(SRC), cells=json.dumps(words), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stdout=-1, text=True)
    wait_for(lambda: list(tmp_path.glob("long*/models/*/[0-9]*/manifest.json")), process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped: 0 of 3 runs are finished" in out
    assert read_result(tmp_path, long) is None
    stopped_at = max(
        int(p.parent.name) for p in tmp_path.glob("long/models/*/[0-9]*/manifest.json")
    )
    assert not (tmp_path / "waiting").exists()

    report = run_grid([long, waiting], LocalLauncher(2), tmp_path, progress=False)
    assert sorted(report.finished) == ["long", "waiting"]
    result = read_result(tmp_path, long)
    assert result.sessions == 2
    assert result.t_env >= 300_000
    assert any(word.startswith("resume=") for word in result.command)
    assert f"at step {stopped_at}" in (tmp_path / "long" / "log.txt").read_text()


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_checkpoints_of_another_configuration_are_not_resumed(tmp_path):
    from inspo.utils.checkpoints import save_checkpoint

    asked = {"lr": 0.1, "label": "x", "local_results_path": "here"}
    assert resumable(tmp_path, asked) == (None, "")
    model = tmp_path / "models" / "run"
    save_checkpoint(model, 5, {}, {"config": {"lr": 0.1, "label": "y"}})
    assert resumable(tmp_path, asked) == (model, "")
    folder, why = resumable(tmp_path, {**asked, "lr": 0.2})
    assert folder is None and "another configuration (lr)" in why


@pytest.fixture
def soon(monkeypatch):
    """What runs elsewhere is tried again at once."""
    monkeypatch.setattr(grid, "BUSY_SECONDS", 0.0)


def test_a_cell_that_another_process_runs_is_waited_for(data, tmp_path, soon, ran, capsys):
    folder, cells, _, _ = ran
    busy, free = cells[0], cell(data, "free", seed=3)
    (tmp_path / busy.id).mkdir(parents=True)
    lock = open(tmp_path / busy.id / ".lock", "w")  # noqa: SIM115  (held until the other is done)
    fcntl.flock(lock, fcntl.LOCK_EX)

    class Launcher(Replayed):
        def start(self, command, home):
            # The others come first. Now the other process finishes the cell, and leaves.
            finished = folder / busy.id
            shutil.copytree(finished, tmp_path / busy.id, dirs_exist_ok=True)
            lock.close()
            return super().start(command, home)

    launcher = Launcher(1, free=[None, None, 7])
    report = run_grid([busy, free], launcher, tmp_path, progress=False)
    assert (report.reused, list(report.failed)) == ([busy.id], ["free"])
    assert launcher.started == ["free"]
    said = capsys.readouterr().err
    assert said.count(f"{busy.id} runs elsewhere: another process") == 1


def test_a_cell_that_was_stopped_elsewhere_is_run_here(data, tmp_path, soon):
    """Also when a node is the first to know, as on a cluster."""
    busy = JobIsBusy("another process runs this cell")
    launcher = Replayed(2, a=[busy], b=[None, 7])
    start = launcher.start

    def start_and_free(command, home):
        job = start(command, home)
        launcher.polls["a"] = [7] if launcher.started.count("a") == 2 else [busy]
        return job

    launcher.start = start_and_free
    report = run_grid([cell(data, "a"), cell(data, "b")], launcher, tmp_path, progress=False)
    assert set(launcher.started[:2]) == {"a", "b"} and launcher.started.count("a") == 3
    assert {name: failure.status for name, failure in report.failed.items()} == {"a": 7, "b": 7}


def test_a_file_system_without_locks_is_an_error_and_not_waited_for(data, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "a").mkdir()
    report = run_grid([cell(data, "a")], LocalLauncher(1), tmp_path, progress=False)
    assert "cannot be locked: Operation not supported" in report.failed["a"].words


def test_errors_come_before_anything_is_run(data, tmp_path):
    with pytest.raises(UserError, match="share the name"):
        run_grid([cell(data), cell(data)], LocalLauncher(1), tmp_path)
    with pytest.raises(ConfigError, match="unknown algorithm"):
        run_grid([cell(data, algorithm="inspoo")], LocalLauncher(1), tmp_path)
    with pytest.raises(ConfigError, match="unknown key"):
        run_grid([cell(data, no_such_key=1)], LocalLauncher(1), tmp_path)
    for name in ("../up", "/abs", "a//b", "a b", "", "a" * 201, f"a/{'ä' * 101}/b"):
        with pytest.raises(UserError, match="name of a cell"):
            Cell(name, "bc", "matrix_offline")
    assert os.listdir(tmp_path) == []


def record(data, folder, number="1", **run):
    """A finished run of `cell(data)` as Sacred writes it down; its folder."""
    home = folder / "bc/seed0/sacred/bc/xor_b" / number
    home.mkdir(parents=True)
    run = {"status": "COMPLETED", "result": {"t_env": 5, "updates": 1}} | run
    (home / "run.json").write_text(json.dumps(run))
    (home / "config.json").write_text(json.dumps(cell(data).config().values))
    return home


@pytest.mark.parametrize("name", ["run", "config"])
@pytest.mark.parametrize("text", ['{"status": "COMPL', "null", "[]", "[" * 100_000])
def test_an_unreadable_record_is_no_result(data, tmp_path, name, text):
    (record(data, tmp_path) / f"{name}.json").write_text(text)
    assert read_result(tmp_path, cell(data)) is None


@pytest.mark.parametrize("name", ["1_old", "1.bak", "1²"])
def test_what_a_user_set_aside_is_no_record(data, tmp_path, name):
    record(data, tmp_path, name)
    assert read_result(tmp_path, cell(data)) is None
    home = record(data, tmp_path, "2")
    assert read_result(tmp_path, cell(data)).run_folder == home


def test_odd_but_harmless_records_are_read(data, tmp_path):
    record(data, tmp_path, "1", start_time="2020-01-01T00:00:00", heartbeat="2020-01-01T00:00Z")
    home = record(data, tmp_path, "2", start_time=3, host=None)
    (home / "info.json").write_text("null")
    result = read_result(tmp_path, cell(data))
    assert (result.hours, result.host, result.command, result.dataset) == (0.0, {}, [], {})
    recorded = {"dataset": {"path": 3}, "test_nepisode": "32", "test_greedy": True}
    asked = {"dataset": {"path": "a.h5"}, "test_nepisode": 32, "test_greedy": True}
    assert len(differences(recorded, asked, set())) == 2


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", *(f'{{"updates_per_second": {x}}}' for x in ("[]", "null", "3"))]
    + [
        f'{{"updates_per_second": {{"values": {x}}}}}'
        for x in ("[]", "null", "3", "[0]", "[0.5, -1]", "[NaN]", '["a"]', "[null]")
    ],
)
def test_training_hours_without_a_pace_are_one_error(data, tmp_path, content):
    path = record(data, tmp_path) / "metrics.json"
    result = read_result(tmp_path, cell(data))
    path.write_text('{"updates_per_second": {"values": [1.0, 0.5]}}')
    assert training_hours(result, steps=5) == pytest.approx(1.5 / 3600)
    path.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json: expected .*updates_per_second"):
        training_hours(result)


def test_a_run_of_no_steps_has_no_training_hours(data, tmp_path):
    home = record(data, tmp_path, result={"t_env": 0, "updates": 0})
    (home / "metrics.json").write_text('{"updates_per_second": {"values": [1.0]}}')
    with pytest.raises(UserError, match="in a run of 0 steps"):
        training_hours(read_result(tmp_path, cell(data)))


def test_differences():
    before = {"a": 1, "new_group": {"x": 1}, "dataset": {"path": "/old/d.h5"}, "resume": "m"}
    now = {"a": 1, "new_group": {"x": 1}, "dataset": {"path": "/new/d.h5"}, "resume": "", "b": 2}
    assert differences(before, now, set()) == []  # b came later, its default is what was done
    assert differences(before, now, {"b"}) == ["b was None and is 2"]
    assert differences(before, {**now, "a": 2}, set()) == ["a was 1 and is 2"]
    assert differences(before, {**now, "torch_threads": 2}, {"torch_threads"}) == []
    (text,) = differences(before, {**now, "dataset": {"path": "/new/other.h5"}}, set())
    assert "dataset.path" in text
    assert differences({"env_args": {"a": 1}}, {"env_args": {}}, set()) == []


def test_more_tests_along_the_way_are_as_good():
    """Greedy tests leave training's stream alone: the run is the one asked for."""

    def told(before, now, **others):
        asked = {"test_greedy": True, "test_epsilon": 0.0, **others}
        return differences(
            {**asked, "test_nepisode": before}, {**asked, "test_nepisode": now}, set()
        )

    assert told(96, 32) == told(32, 32) == []
    assert told(32, 96) == ["test_nepisode was 32 and is 96"]
    assert told(96, 0) and told(0, 32)
    assert told(96, 32, test_greedy=False) and told(96, 32, test_epsilon=0.1)


@pytest.mark.parametrize(
    ("outcome", "missing"),
    [
        (None, "t_env, updates"),
        ({"t_env": 5, "updates": 1, "final": {"py/id": "x"}}, "final"),
        ({"t_env": 5, "updates": "1", "tests": [{"a": [1]}]}, "updates, tests"),
        ({"t_env": 5, "updates": 1, "tests": None}, "tests"),
        ({"t_env": 5, "updates": 1, "tests": 5}, "tests"),
    ],
)
def test_a_record_of_another_version_is_told(data, tmp_path, outcome, missing):
    home = tmp_path / "bc/seed0/sacred/bc/xor_b/1"
    home.mkdir(parents=True)
    (home / "run.json").write_text(json.dumps({"status": "COMPLETED", "result": outcome}))
    (home / "config.json").write_text(json.dumps(cell(data).config().values))
    with pytest.raises(
        UserError, match=rf"another version of this program.* no readable {missing}"
    ):
        read_result(tmp_path, cell(data))


def test_a_reference_to_the_final_test_is_the_final_test(data, tmp_path):
    home = tmp_path / "bc/seed0/sacred/bc/xor_b/1"
    home.mkdir(parents=True)
    final = {"t_env": 5, "test_return_mean": 0.5}
    tests = [{"t_env": 0, "test_return_mean": 0.1}, {"py/id": 16}]
    outcome = {"t_env": 5, "updates": 1, "final": final, "tests": tests}
    (home / "run.json").write_text(json.dumps({"status": "COMPLETED", "result": outcome}))
    (home / "config.json").write_text(json.dumps(cell(data).config().values))
    assert read_result(tmp_path, cell(data)).tests == [tests[0], final]


class Replayed:
    """A launcher without processes: what each `poll` says, by the name of the cell's folder."""

    def __init__(self, slots, **polls):
        self.slots, self.polls, self.started = slots, polls, []

    def start(self, command, home):
        self.started.append(home.name)
        job = Replayed(0)
        job.answers = list(self.polls[home.name])
        return job

    def poll(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self):
        raise AssertionError("a job was left over")


def test_a_lost_job_stops_no_other(data, tmp_path):
    launcher = Replayed(1, a=[None, UserError("its node ended")], b=[None, 7])
    report = run_grid([cell(data, "a"), cell(data, "b")], launcher, tmp_path, progress=False)
    assert launcher.started == ["a", "b"]
    assert (report.failed["a"].status, report.failed["a"].words) == (None, "its node ended")
    assert (report.failed["b"].status, report.failed["b"].words) == (7, "it said nothing")


@pytest.fixture
def finishes(ran):
    """A launcher's `start` whose cells end at once, with the result of the finished one."""
    source, cells, _, _ = ran

    class Launcher(Replayed):
        def start(self, command, home):
            shutil.copytree(source / cells[0].id, home)
            return super().start(command, home)

    return Launcher


def test_a_result_that_cannot_be_taken_stops_no_other(data, tmp_path, finishes):
    def on_finished(done, result):
        if done.id == "a":
            raise UserError("cannot write the table: no space left")

    launcher = finishes(1, a=[None, 0], b=[None, 0])
    both = [cell(data, "a"), cell(data, "b")]
    report = run_grid(both, launcher, tmp_path, on_finished, progress=False)
    assert report.finished == ["b"]
    assert str(report.failed["a"]).startswith("a failed:\n  | cannot write the table")


def test_a_damaged_result_stops_no_other(data, tmp_path, finishes):
    class Launcher(finishes):
        def start(self, command, home):
            job = super().start(command, home)
            if home.name == "a":
                (path,) = home.glob("sacred/*/*/1/run.json")
                path.write_text('{"status": "COMPLETED", "result": null}')
            return job

    launcher = Launcher(1, a=[0], b=[0])
    both = [cell(data, "a"), cell(data, "b")]
    report = run_grid(both, launcher, tmp_path, progress=False)
    assert report.finished == ["b"] and "no readable t_env" in report.failed["a"].words


def test_a_fault_of_the_program_lets_the_others_save(data, tmp_path, finishes):
    """Each is asked once: a second SIGTERM would make it leave without saving."""
    asked = []

    class Launcher(finishes):
        def start(self, command, home):
            job = super().start(command, home)
            job.terminate = lambda: asked.append(home.name)
            return job

    def on_finished(done, result):
        raise KeyError("a bug")

    launcher = Launcher(2, a=[None, 0, 0], b=[None] * 4 + [143])
    with pytest.raises(KeyError, match="a bug"):
        run_grid([cell(data, "a"), cell(data, "b")], launcher, tmp_path, on_finished, False)
    assert asked == ["a", "b"]  # and none was killed: see Replayed


def test_children_are_asked_to_stop_once(tmp_path):
    job, asked = Replayed(0), []
    job.answers, job.terminate = [None, 0, 0], lambda: asked.append(1)
    running = [grid._Running(None, job, tmp_path / "log.txt", 0, 10)]
    for _ in grid._stop(running):  # as when its result cannot be taken, and so a second time
        break
    assert len(list(grid._stop(running))) == 1 and running == []
    assert asked == [1]


def remaining(line):
    """Seconds that the line shows, had the session taken one second."""
    bar = line._bar
    return (bar.total - bar.n) / (bar.n - bar.initial)


@pytest.fixture
def line(monkeypatch):
    monkeypatch.setattr(grid, "PROGRESS_SECONDS", 0.0)
    line = grid._Line(4, 0, True, "grid")
    yield line
    line.close()


def running_at(data, log, *percents):
    log.write_text("collecting: 40%|#\r" + "".join(f"bc: {p:3d}%|#\r" for p in percents))
    return grid._Running(cell(data, log.name), None, log, 0, 10_000)


def test_the_time_left_counts_what_this_session_did(data, tmp_path, line):
    # Two resumed at 90 %, one of them at 91 % now and one at 92 %: 3 % of a cell were done.
    runs = [running_at(data, tmp_path / "a", 90, 91), running_at(data, tmp_path / "b", 90, 92)]
    line.show(GridReport(), runs, grid._Queue([]))
    assert line._bar.n == 1830
    assert remaining(line) == pytest.approx((4 - 1.83) / 0.03)


def test_what_failed_or_was_reused_is_no_work(data, tmp_path, line):
    failed = running_at(data, tmp_path / "a", 0, 5)
    line.ended(failed, failed.progress()[0])
    finished = running_at(data, tmp_path / "b", 60, 90)
    line.ended(finished, 1.0)
    never = Failure(cell(data), None, "", tmp_path)
    report = GridReport(reused=["c"], finished=["b"], failed={"a": never})
    line.show(report, [], grid._Queue([cell(data, "d")]))
    assert line._bar.n == 3000
    assert remaining(line) == pytest.approx(1 / 0.45)


def test_the_line_says_what_runs_elsewhere(data, line):
    queue = grid._Queue([cell(data, "a"), cell(data, "b")])
    assert all(queue.put_behind(queue.pop()) for _ in range(2))
    line.show(GridReport(), [], queue)
    assert line._bar.postfix == "0 of 4 runs, 2 running elsewhere"
    assert queue.pop() is None  # too early


def test_what_another_grid_finished_meanwhile_is_not_run(data, tmp_path, ran):
    folder, cells, _, _ = ran
    finished = cells[0]
    launcher = Replayed(1, first=[None, None, 1])
    first = cell(data, "first")
    start = launcher.start

    def start_and_copy(command, home):
        shutil.copytree(folder / finished.id, tmp_path / finished.id)
        return start(command, home)

    launcher.start = start_and_copy
    report = run_grid([first, finished], launcher, tmp_path, progress=False)
    assert report.reused == [finished.id] and launcher.started == ["first"]


def test_paths_among_the_overrides_are_absolute_for_the_process(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = grid.command_of(cell(data, datasets_dir="here"), tmp_path, Path("/model"))
    assert f"datasets_dir={tmp_path / 'here'}" in words
    assert words[-2:] == [f"local_results_path={tmp_path / 'bc/seed0'}", "resume=/model"]


def test_last_lines_and_progress():
    assert last_lines("a\n\nx\ry\nTraceback\nerror: short") == "error: short"
    assert last_lines("1\n10%\r20%\n2\n", 2) == "20%\n2"
    assert progress_in("", "bc", 10) == (0.0, "starting")
    assert progress_in("bc:  70%|##", "bc", 10) == (0.7, "70%")
    assert progress_in("t_env 20", "bc", 10) == (1.0, "100%")
    assert progress_in("t_env , then", "bc", 10) == (0.0, "starting")
    assert first_share_in("collecting: 40%|#", "bc", 10) is None
    assert first_share_in("collecting: 40%|#\rbc:   0%|\rbc:  30%|\nt_env 9", "bc", 10) == 0.0
