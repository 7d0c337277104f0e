"""Locks and temporary files: one at a time, never through a link, and nothing stays for ever."""

from __future__ import annotations

import errno
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
from cases import in_a_child

from inspo.utils import files
from inspo.utils.errors import DatasetError


def test_a_lock_lets_one_in_at_a_time_and_leaves_no_file(tmp_path):
    inside, most, waited = [], [], []

    def work():
        for _ in range(200):
            with files.locked(tmp_path / "deep" / "x", lambda: waited.append(1)):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 1600
    assert os.listdir(tmp_path / "deep") == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    os.symlink(precious, tmp_path / ".x.lock")
    with (
        pytest.raises(DatasetError, match=r"\.x\.lock: cannot be written"),
        files.locked(tmp_path / "x"),
    ):
        pass
    assert precious.read_text() == "mine"


def test_a_disk_without_locks_is_used_without(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", fail)
    with files.locked(tmp_path / "x"), files.temporary(tmp_path / "x") as new:
        os.replace(new, tmp_path / "x")
    with files.temporary(tmp_path / "y"):
        os.utime(tmp_path / "x", (0, 0))
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_temporary_file_goes_with_its_block_unless_it_gets_its_name(tmp_path, folder):
    with pytest.raises(KeyboardInterrupt), files.temporary(tmp_path / "x", folder=folder) as new:
        assert new.is_dir() == folder and new.parent == tmp_path
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with files.temporary(tmp_path / "x", folder=folder) as new:
        os.replace(new, tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


def test_what_dead_processes_left_goes_with_the_next_write(tmp_path):
    def killed(path, folder):
        with files.temporary(path, folder=folder):
            os.kill(os.getpid(), signal.SIGKILL)

    for folder in (False, True):
        status = in_a_child(partial(killed, tmp_path / str(folder), folder))
        assert status == -signal.SIGKILL
    (tmp_path / ".mine.tmp").write_text("of another program")
    abandoned = [p for p in tmp_path.iterdir() if p.name != ".mine.tmp"]
    assert len(abandoned) == 2
    with files.temporary(tmp_path / "alive") as alive:
        assert all(p.exists() for p in abandoned)  # young ones may not have their lock yet
        for path in (*abandoned, alive):
            os.utime(path, (0, 0))
        with files.temporary(tmp_path / "other"):
            assert not any(p.exists() for p in abandoned) and alive.exists()
    assert os.listdir(tmp_path) == [".mine.tmp"]


@pytest.mark.parametrize("place", ["/proc/x", "{}/file/x", "{}/loop/x"])
def test_where_nothing_can_stand_is_one_clear_error(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with (
        pytest.raises(DatasetError, match="cannot be made"),
        files.locked(Path(place.format(tmp_path)) / "data.h5"),
    ):
        pass
