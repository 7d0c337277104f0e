"""Campaigns: small real runs, a failing one, a stopped one; the rest with a scripted pool."""

import errno
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from inspo.experiments import campaign, cells
from inspo.experiments.campaign import CampaignReport, last_lines, resumable, run_cells
from inspo.experiments.cells import Cell, command_of, finished_run_of
from inspo.experiments.pool import CellIsBusy, LocalPool
from inspo.experiments.records import differences, doing
from inspo.utils.checkpoints import save_checkpoint
from inspo.utils.errors import ConfigError, UserError
from inspo.utils.interrupts import exit_status

# Five updates of BC on a matrix game: most of a cell's time is Python starting.
TINY = {"map_name": "xor", "quality": "b", "t_max": 2560, "final_test_nepisode": 7}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


def cell(data, name="bc/seed0", algorithm="bc", **overrides):
    overrides = {**TINY, "datasets_dir": str(data), "seed": 0, **overrides}
    return Cell(name, algorithm, "matrix_offline", overrides)


def two(data):
    return [cell(data, "a"), cell(data, "b")]


class Scripted:
    """A pool without processes. outcomes: name of a cell's folder -> what comes of each start: an
    exit status, an exception, or None: it runs until it is asked to stop, and leaves with one of
    `ends`. on_start: called with the folder."""

    def __init__(self, slots, on_start=lambda home: None, ends=(143, 143), **outcomes):
        self.slots, self.outcomes, self.started, self.stops = slots, outcomes, [], 0
        self._on_start, self._ends, self._pending = on_start, ends, []

    def submit(self, command, home):
        self.started.append(home.name)
        self._on_start(home)
        outcome, future = self.outcomes[home.name].pop(0), Future()
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        elif outcome is None:
            self._pending.append(future)
        else:
            future.set_result(outcome)
        return future

    def stop(self):
        self.stops += 1
        for future, status in zip(self._pending, self._ends):
            future.set_result(status)

    def close(self):
        pass


def run(cells, pool, folder, **options):
    return run_cells(cells, pool, folder, progress=False, **options)


# Real runs


@pytest.fixture(scope="module")
def ran(data, tmp_path_factory):
    """A good cell and a bad one, run at once."""
    folder = tmp_path_factory.mktemp("grid")
    asked = [cell(data), cell(data, "bad", quality="no_such_quality")]
    seen = {}
    report = run(asked, LocalPool(2), folder, on_finished=lambda c, r: seen.update({c.id: r}))
    return folder, asked, report, seen


def test_a_failing_cell_is_reported_and_stops_nothing(ran):
    folder, _, report, seen = ran
    assert report.finished == list(seen) == ["bc/seed0"] and report.reused == []
    failure = report.failed["bad"]
    assert (failure.status, failure.log) == (2, folder / "bad" / "log.txt")
    assert failure.message.startswith("error: ") and "no_such_quality" in failure.message
    assert "no_such_quality" in failure.log.read_text()
    assert str(failure.log) in str(failure)


def test_a_run_says_what_was_run_and_what_came_out(ran):
    folder, asked, _, seen = ran
    result = finished_run_of(folder, asked[0])
    assert result == seen["bc/seed0"]
    assert (result.seed, result.t_env, result.updates, result.sessions) == (0, 2560, 5, 1)
    assert result.config["map_name"] == "xor" and "quality=b" in result.command
    assert result.final == result.tests[-1]
    assert [test["t_env"] for test in result.tests] == [0, 2560]
    assert {"test_expected_return", "test_joint_00"} <= set(result.final)
    assert len(result.raw["returns"]) == len(result.raw["lengths"]) == 7
    assert result.dataset["episodes"] == 1200
    assert result.hours > 0 and result.model_folder.is_dir()
    last = doing(folder / "bc/seed0", 0.0)
    assert last[:2] == ("final test", 1.0) and last.text.startswith("final test 7/7 episodes, ")
    assert finished_run_of(folder, asked[1]) is None


def test_what_is_finished_is_not_run_again(ran):
    folder, asked, _, _ = ran
    report = run(asked[:1], Scripted(2), folder)
    assert (report.reused, report.finished, report.failed) == (["bc/seed0"], [], {})


def test_another_configuration_in_the_folder_is_an_error(ran):
    folder, asked, _, _ = ran
    other = replace(asked[0], overrides={**asked[0].overrides, "lr": 0.1})
    with pytest.raises(UserError, match=r"another configuration: lr was .* and is 0\.1"):
        run([other], Scripted(1), folder)
    harmless = {"datasets_dir": "elsewhere", "label": "mine", "torch_threads": 2}
    same = replace(asked[0], overrides={**asked[0].overrides, **harmless})
    assert finished_run_of(folder, same) is not None


def test_a_stopped_campaign_saves_and_the_second_call_goes_on(data, tmp_path, capsys):
    long = cell(data, "long", t_max=150_000, save_model_interval=25_600, test_interval=300_000)
    waiting = cell(data, "waiting", seed=1)

    def steps_saved():
        return [int(p.parent.name) for p in tmp_path.glob("long/models/*/[0-9]*/manifest.json")]

    def stop_when_one_is_saved():
        deadline = time.monotonic() + 120
        while not steps_saved() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_one_is_saved)
    thread.start()
    assert exit_status(lambda: run([long, waiting], LocalPool(1), tmp_path) and 0) == 143
    thread.join()
    assert "0 of 2 runs are finished, those under way are saved" in capsys.readouterr().err
    assert finished_run_of(tmp_path, long) is None and not (tmp_path / "waiting").exists()
    stopped_at = max(steps_saved())

    assert run([long], LocalPool(1), tmp_path).finished == ["long"]
    result = finished_run_of(tmp_path, long)
    assert result.sessions == 2 and result.t_env >= 150_000
    assert any(word.startswith("resume=") for word in result.command)
    assert f"at step {stopped_at}" in (tmp_path / "long" / "log.txt").read_text()


# What runs elsewhere


@pytest.fixture
def soon(monkeypatch):
    """What runs elsewhere is tried again at once."""
    monkeypatch.setattr(campaign, "BUSY_SECONDS", 0.0)


def test_a_cell_that_another_process_runs_is_waited_for(data, tmp_path, soon, ran, capsys):
    busy, free = cell(data), cell(data, "free", seed=3)
    (tmp_path / busy.id).mkdir(parents=True)
    lock = open(tmp_path / busy.id / ".lock", "w")  # noqa: SIM115  (held until the other is done)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def finish(home):
        # The others come first. Now the other process finishes the cell, and leaves.
        shutil.copytree(ran[0] / busy.id, tmp_path / busy.id, dirs_exist_ok=True)
        lock.close()

    pool = Scripted(1, finish, free=[7])
    report = run([busy, free], pool, tmp_path)
    assert (report.reused, list(report.failed)) == ([busy.id], ["free"])
    assert pool.started == ["free"]
    assert capsys.readouterr().err.count(f"{busy.id} runs elsewhere: another process") == 1


def test_a_cell_that_was_stopped_elsewhere_is_run_here(data, tmp_path, soon):
    """Also when a node is the first to notice, as on a cluster."""
    busy = CellIsBusy("another process runs this cell")
    pool = Scripted(2, a=[busy, busy, 7], b=[7])
    report = run(two(data), pool, tmp_path)
    assert set(pool.started[:2]) == {"a", "b"} and pool.started.count("a") == 3
    assert {name: failure.status for name, failure in report.failed.items()} == {"a": 7, "b": 7}


def test_what_another_campaign_finished_meanwhile_is_not_run(data, tmp_path, ran):
    def elsewhere(home):
        shutil.copytree(ran[0] / "bc/seed0", tmp_path / "bc/seed0")

    pool = Scripted(1, elsewhere, first=[1])
    report = run([cell(data, "first"), cell(data)], pool, tmp_path)
    assert report.reused == ["bc/seed0"] and pool.started == ["first"]


def test_a_file_system_without_locks_is_an_error_and_not_waited_for(data, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "a").mkdir()
    report = run([cell(data, "a")], LocalPool(1), tmp_path)
    assert "cannot be locked: Operation not supported" in report.failed["a"].message


# What goes wrong


def test_errors_come_before_anything_is_run(data, tmp_path):
    for asked, kind, message in (
        ([cell(data), cell(data)], UserError, "share the name"),
        ([cell(data, algorithm="inspoo")], ConfigError, "unknown algorithm"),
        ([cell(data, no_such_key=1)], ConfigError, "unknown key"),
    ):
        with pytest.raises(kind, match=message):
            run(asked, Scripted(1), tmp_path)
    for name in ("../up", "/abs", "a//b", "a b", "", "a" * 201, f"a/{'ä' * 101}/b"):
        with pytest.raises(UserError, match="name of a cell"):
            Cell(name, "bc", "matrix_offline")
    assert os.listdir(tmp_path) == []


def test_a_lost_job_stops_no_other(data, tmp_path):
    pool = Scripted(1, a=[RuntimeError("its node ended")], b=[7])
    report = run(two(data), pool, tmp_path)
    assert pool.started == ["a", "b"]
    assert (report.failed["a"].status, report.failed["a"].message) == (None, "its node ended")
    assert (report.failed["b"].status, report.failed["b"].message) == (7, "it wrote nothing")


@pytest.fixture
def finish(ran):
    """For `on_start`: the cell's folder has the files of a finished one."""
    return lambda home: shutil.copytree(ran[0] / "bc/seed0", home)


@pytest.mark.parametrize("damage", ["table", "record"])
def test_a_result_that_cannot_be_taken_stops_no_other(data, tmp_path, finish, damage):
    def start(home):
        finish(home)
        if damage == "record" and home.name == "a":
            (path,) = home.glob("sacred/*/*/1/run.json")
            path.write_text('{"status": "COMPLETED", "result": null}')

    def on_finished(done, result):
        if damage == "table" and done.id == "a":
            raise UserError("cannot write the table: no space left")

    pool = Scripted(1, start, a=[0], b=[0])
    report = run(two(data), pool, tmp_path, on_finished=on_finished)
    expected = {"table": "cannot write the table", "record": "another version"}[damage]
    assert report.finished == ["b"] and expected in str(report.failed["a"])


def test_a_fault_of_the_program_lets_the_others_save(data, tmp_path, finish):
    """They are asked once: a second SIGTERM would make them leave without saving."""

    def on_finished(done, result):
        raise KeyError("a bug")

    pool = Scripted(2, finish, a=[0], b=[None])
    with pytest.raises(KeyError, match="a bug"):
        run(two(data), pool, tmp_path, on_finished=on_finished)
    assert pool.stops == 1


def test_what_ends_while_it_is_stopped_has_its_result_taken(data, tmp_path, finish, capsys):
    def start(home):
        finish(home)
        if home.name == "b":
            os.kill(os.getpid(), signal.SIGINT)

    report = CampaignReport()
    pool = Scripted(2, start, ends=(0, 130), a=[None], b=[None])
    assert exit_status(lambda: run(two(data), pool, tmp_path, report=report) and 0) == 130
    assert report.finished == ["a"] and not report.failed
    assert "1 of 2 runs are finished" in capsys.readouterr().err


# Going on


def test_checkpoints_of_another_configuration_are_not_resumed(tmp_path):
    requested = {"lr": 0.1, "label": "x", "local_results_path": "here", "env_timeout": 5}
    assert resumable(tmp_path, requested) == (None, 0, "")
    model = tmp_path / "models" / "run"
    config = {"lr": 0.1, "label": "y", "env_timeout": 60, "dataset": {"path": "/old/d.h5"}}
    save_checkpoint(model, 5, {}, {"config": config})
    assert resumable(tmp_path, requested) == (model, 5, "")
    moved = {"dataset": {"path": "/new/d.h5"}}  # another file may hide behind the same name
    for changes, key in (({"lr": 0.2}, "lr"), (moved, "dataset.path")):
        folder, _, reason = resumable(tmp_path, {**requested, **changes})
        assert folder is None and f"another configuration ({key})" in reason
    (model / "5" / "manifest.json").write_text("{")
    assert "broken" in resumable(tmp_path, requested)[2]


def test_what_may_differ_between_a_record_and_what_is_requested():
    before = {"a": 1, "new_group": {"x": 1}, "dataset": {"path": "/old/d.h5"}, "resume": "m"}
    now = {"a": 1, "new_group": {"x": 1}, "dataset": {"path": "/new/d.h5"}, "resume": "", "b": 2}
    assert differences(before, now, set()) == []  # b came later, its default is what was done
    assert differences(before, now, {"b"}) == ["b was None and is 2"]
    assert differences(before, {**now, "a": 2}, set()) == ["a was 1 and is 2"]
    for key in ("torch_threads", "env_timeout"):
        assert differences({**before, key: 1}, {**now, key: 2}, {key}) == []
    (text,) = differences(before, {**now, "dataset": {"path": "/new/other.h5"}}, set())
    assert "dataset.path" in text
    assert differences({"env_args": {"a": 1}}, {"env_args": {}}, set()) == []
    # Fewer greedy tests along the way leave training's stream alone; sampled ones do not.
    for changes, kept, requested, alike in (
        ({}, 96, 32, True), ({}, 32, 96, False), ({}, 96, 0, False), ({}, 0, 32, False),
        ({"test_greedy": False}, 96, 32, False), ({"test_epsilon": 0.1}, 96, 32, False),
    ):  # fmt: skip
        both = {"test_greedy": True, "test_epsilon": 0.0} | changes
        tests = [both | {"test_nepisode": number} for number in (kept, requested)]
        assert (differences(*tests, set()) == []) == alike


# Records


def record(data, folder, number="1", **run):
    """A finished run of `cell(data)` as Sacred writes it down; its folder."""
    home = folder / "bc/seed0/sacred/bc/xor_b" / number
    home.mkdir(parents=True)
    run = {"status": "COMPLETED", "result": {"t_env": 5, "updates": 1}} | run
    (home / "run.json").write_text(json.dumps(run))
    (home / "config.json").write_text(json.dumps(cell(data).config().values | {"seed": 0}))
    return home


@pytest.mark.parametrize("name", ["1_old", "1.bak", "1²", "run.json", "config.json"])
def test_what_a_user_set_aside_or_a_kill_cut_is_no_record(data, tmp_path, name):
    if name.endswith("json"):
        (record(data, tmp_path) / name).write_text('{"status": "COMPL')
    else:
        record(data, tmp_path, name)
    assert finished_run_of(tmp_path, cell(data)) is None
    home = record(data, tmp_path, "2", heartbeat="2020-01-01T00:00Z", host=None)
    result = finished_run_of(tmp_path, cell(data))
    assert (result.folder, result.hours, result.command) == (home, 0.0, [])


def test_a_record_that_does_not_say_what_the_run_is_at(data, tmp_path):
    home = record(data, tmp_path)
    assert doing(tmp_path / "bc/seed0", 0.0) is None
    for text in ("", "[]", "null", '{"phase": 3}', '{"phase": {"name": "a"}}'):
        (home / "info.json").write_text(text)
        assert doing(tmp_path / "bc/seed0", 0.0) is None
    (home / "info.json").write_text('{"phase": {"name": "test", "share": 0.4, "text": "so far"}}')
    assert doing(tmp_path / "bc/seed0", 0.0) == ("test", 0.4, "so far")
    assert doing(tmp_path / "bc/seed0", time.time() + 60) is None  # an earlier session's


# The progress line, commands


@pytest.fixture
def line(monkeypatch):
    monkeypatch.setattr(campaign, "PROGRESS_SECONDS", 0.0)
    line = campaign._Line(4, "grid", True)
    yield line
    line.close()


def remaining(line):
    """Seconds that the line shows, had the session taken one second."""
    return (line.total - line.n) / (line.n - line.initial)


def running(data, home, first, now):
    """A cell that began with a share of its steps, and has done another one by now."""
    folder = home / "sacred/bc/xor_b/1"
    folder.mkdir(parents=True)
    phase = {"name": "training", "share": now / 100, "text": f"training {now}/100 steps"}
    (folder / "info.json").write_text(json.dumps({"phase": phase}))
    return campaign._Running(cell(data, home.name), home, 0, 0.0, first / 100)


def test_the_time_left_counts_what_this_session_did(data, tmp_path, line):
    # Two resumed at 90 %, one of them at 91 % now and one at 92 %: 3 % of a cell were done.
    runs = [running(data, tmp_path / "a", 90, 91), running(data, tmp_path / "b", 90, 92)]
    line.show(CampaignReport(), runs, 2)
    assert line.n == pytest.approx(1.83)
    assert remaining(line) == pytest.approx((4 - 1.83) / 0.03)
    said = "a: training 91/100 steps; b: training 92/100 steps"
    assert line.postfix == f"0 of 4 runs; 2 running elsewhere; {said}"
    # A test within the training takes nothing back.
    (runs[0].home / "sacred/bc/xor_b/1/info.json").write_text(
        '{"phase": {"name": "test", "share": 0.0, "text": "test 0/320 episodes"}}'
    )
    line.show(CampaignReport(), runs, 0)
    assert line.n == pytest.approx(1.83) and "; a: test 0/320 episodes; b" in line.postfix
    # What failed or was reused is no work, but for what was done of it.
    line.worked, line.n, line.initial = 0.05 + 0.4, 0, 0
    line.show(CampaignReport(reused=["c"], finished=["b"], failed={"a": None}), [], 0)
    assert line.n == 3 and remaining(line) == pytest.approx(1 / 0.45)


@pytest.mark.parametrize("in_checkout", [True, False])
def test_the_command_of_a_cell(data, tmp_path, monkeypatch, in_checkout):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cells, "IN_CHECKOUT", in_checkout)
    words = command_of(cell(data, datasets_dir="here"), tmp_path, Path("/model"))
    assert words[0] == sys.executable
    assert words[1].endswith("src/main.py") if in_checkout else words[1:3] == ["-m", "inspo.main"]
    assert f"datasets_dir={tmp_path / 'here'}" in words  # absolute, for any node
    assert words[-2:] == [f"local_results_path={tmp_path / 'bc/seed0'}", "resume=/model"]
    begun = cell(data, checkpoint_path="/weights")  # once resumed, its own
    for model in (None, Path("/model")):
        words = command_of(begun, tmp_path, model)
        assert ("checkpoint_path=/weights" in words) is (model is None)


def test_last_lines():
    assert last_lines("a\n\nx\ry\nTraceback\nerror: short") == "error: short"
    assert last_lines("1\n10%\r20%\n2\n", 2) == "20%\n2"
