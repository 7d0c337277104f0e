"""Checkpoints: whole or not there at all, and one clear error for each way of being broken."""

import json
import os
import random
import resource

import numpy as np
import pytest
import torch

from inspo.utils import checkpoints
from inspo.utils import files as disk
from inspo.utils.errors import CheckpointError

TEXT = {"alg": "inspo", "env": "smax", "map": "2s3z"}


def entries(x=1.0):
    return {
        "agent.th": {"weight": torch.full((3, 2), x)},
        "run.th": {"t_env": 7, "history": [(1, 0.5), (2, 0.25)], "order": (0, 1), "best": None},
    }


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models" / "token"


def error_of(*args, **kwargs):
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_checkpoint(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_saved_is_loaded(folder):
    path = checkpoints.save_checkpoint(folder, 100, entries(), TEXT)
    assert path == folder / "100"
    loaded = checkpoints.load_checkpoint(folder)
    assert (loaded.folder, loaded.step, loaded.text) == (path, 100, TEXT)
    assert torch.equal(loaded.files["agent.th"]["weight"], torch.ones(3, 2))
    assert loaded.files["run.th"] == entries()["run.th"]
    assert sorted(p.name for p in folder.iterdir()) == ["100"]


def test_only_some_files_a_steps_own_folder_and_what_is_expected(folder):
    path = checkpoints.save_checkpoint(folder, 100, entries(), TEXT)
    assert list(checkpoints.load_checkpoint(path, only=["agent.th"]).files) == ["agent.th"]
    assert "learner.th" in error_of(folder, only=["learner.th"])
    checkpoints.load_checkpoint(folder, expect={"alg": "inspo", "map": "2s3z"})
    message = error_of(folder, expect={"alg": "bc", "map": "2s3z"})
    assert all(part in message for part in ("another alg", "'bc'", "'inspo'"))


@pytest.mark.parametrize(
    ("load_step", "found"), [(0, 300), (1, 0), (190, 200), (150, 100), (999, 300)]
)
def test_the_last_or_the_nearest_step(folder, load_step, found):
    checkpoints.save_checkpoint(folder, 0, entries(), TEXT)
    assert checkpoints.load_checkpoint(folder).step == 0
    for step in (90, 200, 300, 100):  # numbers sort as numbers
        checkpoints.save_checkpoint(folder, step, entries(step), TEXT)
    assert checkpoints.list_steps(folder) == [0, 90, 100, 200, 300]
    assert checkpoints.load_checkpoint(folder, load_step).step == found


def test_older_ones_are_deleted(folder):
    for step in (1, 2, 3, 4, 5):
        checkpoints.save_checkpoint(folder, step, entries(), TEXT, keep_checkpoints=2)
    assert checkpoints.list_steps(folder) == [4, 5]
    for x in (1.0, 2.0):  # a step that is saved again is replaced
        checkpoints.save_checkpoint(folder, 3, entries(x), TEXT, keep_checkpoints=1)
    assert checkpoints.load_checkpoint(folder).files["agent.th"]["weight"][0, 0] == 2.0
    assert [p.name for p in folder.iterdir()] == ["3"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("victim", ["_write_entry", "replace_folder"])
@pytest.mark.parametrize("same_step", [True, False])
def test_killed_while_writing_the_earlier_one_is_whole(folder, monkeypatch, victim, same_step):
    checkpoints.save_checkpoint(folder, 1, entries(1.0), TEXT)

    def die(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints if victim == "_write_entry" else disk, victim, die)
        patch.setattr(disk, "_remove", lambda name: None)  # a kill tidies nothing
        with pytest.raises(Killed):
            checkpoints.save_checkpoint(folder, 1 if same_step else 2, entries(2.0), TEXT)
    (left,) = [path for path in folder.iterdir() if path.name != "1"]
    assert checkpoints.list_steps(folder) == [1]
    assert checkpoints.load_checkpoint(folder).files["agent.th"]["weight"][0, 0] == 1.0
    os.utime(left, (0, 0))  # it may be another process's as long as it is young
    checkpoints.save_checkpoint(folder, 3, entries(3.0), TEXT)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3"]


def test_killed_between_the_two_renames(folder):
    checkpoints.save_checkpoint(folder, 1, entries(1.0), TEXT)
    (folder / "1").rename(folder / ".1.replaced")
    assert checkpoints.load_checkpoint(folder).step == 1
    checkpoints.save_checkpoint(folder, 2, entries(2.0), TEXT)
    assert checkpoints.list_steps(folder) == [1, 2]
    assert (folder / "1").is_dir()


@pytest.mark.parametrize("limit", [200, 300_000])
def test_no_room_names_file_and_sizes_and_leaves_the_earlier_one(folder, limit):
    checkpoints.save_checkpoint(folder, 1, entries(), TEXT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save_checkpoint(folder, 2, {"agent.th": torch.rand(100_000)}, TEXT, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(caught.value)
    for part in ("2/agent.th", "416,384 bytes needed", "bytes free", "step 1, is intact"):
        assert part in message, message
    assert [p.name for p in folder.iterdir()] == ["1"]
    assert checkpoints.load_checkpoint(folder).step == 1
    (folder / "file").write_text("")
    with pytest.raises(CheckpointError, match="There was no earlier checkpoint"):
        checkpoints.save_checkpoint(folder / "file" / "models", 1, entries(), TEXT)


# --- broken ones ----------------------------------------------------------------------------------


def accept(path):
    """Make the manifest agree with whatever the file now is."""
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["files"][path.name] = {"sha256": disk.sha256(path), "bytes": path.stat().st_size}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def change(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage", "parts"),
    [
        ("agent.th", lambda p: p.write_bytes(p.read_bytes()[:-10]), ["1/agent.th", "bytes"]),
        ("agent.th", change, ["hash"]),
        ("agent.th", lambda p: (p.write_bytes(b"hello"), accept(p)), ["1/agent.th"]),
        ("run.th", lambda p: p.unlink(), ["run.th", "is missing"]),
        *[
            ("manifest.json", lambda p, x=x: p.write_text(x), ["manifest.json is broken"])
            for x in ("{", "[]", "{}", '{"files": {}}')
        ],
        (
            "manifest.json",
            lambda p: p.write_text(p.read_text().replace('version": 1', 'version": 99')),
            ["format 99"],
        ),
        # a folder of stock EPyMARL
        ("manifest.json", lambda p: p.unlink(), ["manifest.json", "agent.th"]),
    ],
)
def test_what_is_broken_is_named(folder, file, damage, parts):
    damage(checkpoints.save_checkpoint(folder, 1, entries(), TEXT) / file)
    message = error_of(folder)
    assert all(part in message for part in parts), message


def test_what_is_no_folder_of_checkpoints(folder):
    path = checkpoints.save_checkpoint(folder, 1, entries(), TEXT)
    (folder.parent / "empty").mkdir()
    for wrong, parts in (
        (folder.with_name("tokn"), ["tokn", "'token'"]),
        (folder.parent / "empty", ["holds no checkpoint"]),
        (path / "agent.th", ["found a file"]),
    ):
        message = error_of(wrong)
        assert all(part in message for part in parts), message


def test_a_foreign_pickle_runs_no_code(folder):
    path = checkpoints.save_checkpoint(folder, 1, entries(), TEXT) / "agent.th"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "evil"),)

    torch.save(Evil(), path)
    accept(path)
    assert "could run code" in error_of(folder)
    assert not (folder / "evil").exists()


# --- random states --------------------------------------------------------------------------------


def draws(generator):
    return (
        random.gauss(0, 1),
        np.random.randn(),
        torch.randn(1).item(),
        generator.standard_normal(),
        int(generator.integers(10, dtype=np.uint32)),
    )


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937])
def test_random_states_go_through_a_checkpoint(folder, kind):
    generator = np.random.Generator(kind(3))
    draws(generator)  # odd: every generator with a normal kept back holds one now
    states = {
        "global": checkpoints.get_random_states(),
        "generator": checkpoints.get_generator_state(generator),
    }
    checkpoints.save_checkpoint(folder, 1, {"run.th": states})
    expected = [draws(generator) for _ in range(3)]
    loaded = checkpoints.load_checkpoint(folder).files["run.th"]
    checkpoints.set_random_states(loaded["global"])
    checkpoints.set_generator_state(generator, loaded["generator"])
    assert [draws(generator) for _ in range(3)] == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_states_and_map_location(folder):
    states = checkpoints.get_random_states()
    checkpoints.save_checkpoint(folder, 1, {"run.th": states, "x.th": torch.ones(2, device="cuda")})
    expected = torch.rand(3, device="cuda")
    loaded = checkpoints.load_checkpoint(folder)
    assert loaded.files["x.th"].device.type == "cpu"
    checkpoints.set_random_states(loaded.files["run.th"])
    assert torch.equal(torch.rand(3, device="cuda"), expected)


# --- right hashes, wrong content ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: m["files"]["agent.th"].update(bytes=None), "files: 'agent.th': expected"),
        (lambda m: m["files"]["agent.th"].pop("sha256"), "files: 'agent.th': expected"),
        (
            lambda m: m["files"].update({"../x": m["files"]["agent.th"]}),
            "'../x': expected the name",
        ),
        (lambda m: m.update(config=[1]), "config"),
        (lambda m: m.update(step="1"), "step"),
    ],
)
def test_a_manifest_of_wrong_content(folder, change, part):
    path = checkpoints.save_checkpoint(folder, 1, entries(), TEXT) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert part in error_of(folder) and str(path) in error_of(folder)


@pytest.mark.parametrize("name", ["manifest.json", "agent.th"])
def test_a_file_without_end_is_not_read(folder, name):
    path = checkpoints.save_checkpoint(folder, 1, entries(), TEXT) / name
    if name == "agent.th":
        manifest = json.loads((folder / "1" / "manifest.json").read_text())
        manifest["files"][name]["bytes"] = 0  # what a device says of its size
        (folder / "1" / "manifest.json").write_text(json.dumps(manifest))
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "not a regular file" in error_of(folder) and name in error_of(folder)
