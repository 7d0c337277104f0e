"""Files: the canonical HDF5 file, AlberDICE's folder, and all that can be wrong with them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_dataset import LIMIT, A, N, make_dataset, metadata, padded, same

from inspo.offline import CanonicalWriter, OfflineDataset, load_dataset, write_dataset
from inspo.offline.formats import REGISTRY, canonical, recognise
from inspo.offline.offline_dataset import FIELDS, FILLED
from inspo.utils.errors import DatasetError

SRC = Path(__file__).parents[1] / "package"


@pytest.fixture
def data() -> OfflineDataset:
    return make_dataset()


@pytest.fixture
def file(tmp_path, data) -> Path:
    """A canonical file that holds `data`."""
    path = tmp_path / "2s3z_medium.h5"
    write_dataset(path, data)
    return path


def write_cfcql(path, batch, userblock_size=0, **options) -> None:
    """A file as CFCQL's own collector writes it: no attributes."""
    with h5py.File(path, "w", userblock_size=userblock_size) as out:
        for key, array in batch.items():
            out.create_dataset(key, data=array, **options)


def write_alberdice(folder, batch, n_episodes=None) -> None:
    folder.mkdir()
    for key, array in batch.items():
        np.save(folder / f"{key}.npy", array)
    count = len(batch["obs"]) if n_episodes is None else n_episodes
    meta = {"buffer_index": 0, "episodes_in_buffer": count, "buffer_size": len(batch["obs"])}
    (folder / "meta.json").write_text(json.dumps(meta))


def error_of(path, **options) -> str:
    with pytest.raises(DatasetError) as caught:
        load_dataset(path, **options)
    return str(caught.value)


# ------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("won", [True, False])
def test_round_trip_keeps_every_bit(tmp_path, data, won):
    facts = metadata(source="ÜÄ λ\tq", notes=("one", "two"), created_by="me", quality="")
    odd = replace(data, battle_won=data.battle_won if won else None, metadata=facts)
    written = write_dataset(tmp_path / "x.h5", odd)
    read = load_dataset(tmp_path / "x.h5", env_info=facts.env_info(), map_name="2s3z")
    assert same(read, data) and read.metadata == written
    assert (written.notes, written.created_by) == (("one", "two"), "me")
    assert (written.win_rate is None) != won
    if won:
        np.testing.assert_array_equal(read.battle_won, data.battle_won)


def test_same_data_same_hash_whatever_the_batches(tmp_path, data, file):
    with CanonicalWriter(tmp_path / "one_by_one.h5", metadata()) as writer:
        for episode in range(len(data)):
            batch = data.episodes([episode])
            batch["probs"] = np.zeros(3)
            writer.append(batch, data.battle_won[[episode]].astype(bool))
    assert writer.n_episodes == 4
    read = load_dataset(tmp_path / "one_by_one.h5")
    assert writer.metadata == read.metadata == load_dataset(file).metadata


def test_garbage_in_the_padding_is_not_written(tmp_path, data):
    batch = padded(data)
    for key in FIELDS:
        batch[key][batch[FILLED][..., 0] == 0] = 5
    with CanonicalWriter(tmp_path / "x.h5", metadata()) as writer:
        writer.append(batch)
    with h5py.File(tmp_path / "x.h5") as stored:
        assert not stored["obs"][:][batch[FILLED][..., 0] == 0].any()
    assert writer.metadata.content_hash == data.metadata.content_hash


def test_cut_episodes_are_written_only_when_admitted(tmp_path, data):
    data.arrays["terminated"][:] = 0
    with (
        pytest.raises(DatasetError, match="no_terminal"),
        CanonicalWriter(tmp_path / "x.h5", metadata()) as writer,
    ):
        writer.append(padded(data))
    with CanonicalWriter(tmp_path / "x.h5", metadata(), allow_cut=True) as writer:
        writer.append(padded(data))
    read = load_dataset(tmp_path / "x.h5")
    assert read.metadata.n_cut == 3
    write_dataset(tmp_path / "again.h5", read)
    assert same(load_dataset(tmp_path / "again.h5"), data)


# --------------------------------------------------------------------- what CFCQL's loader needs


def test_the_file_opens_as_cfcql_opens_it(data, file):
    """Its loader reads every key of the root by sorted index, into a fixed scheme of these dtypes.

    A key that the scheme lacks, or a length other than limit + 1, is an error there.
    """
    types = {"state": "f4", "obs": "f4", "actions": "i8", "avail_actions": "i4", "reward": "f4",
             "terminated": "u1", "filled": "i8"}  # fmt: skip
    batch = padded(data)
    with h5py.File(file) as stored:
        assert {key: stored[key].dtype.str[1:] for key in stored} == types
        for key in types:
            assert stored[key].shape[1] == LIMIT + 1
            np.testing.assert_array_equal(stored[key][[0, 2, 3]], batch[key][[0, 2, 3]])


@pytest.mark.parametrize(
    "options", [{}, {"chunks": True}, {"compression": "gzip"}, {"userblock_size": 512}]
)
def test_a_file_of_cfcql_is_read(tmp_path, data, options, caplog):
    batch = padded(data)
    batch["probs"] = np.zeros((len(data), LIMIT + 1, N, A), dtype=np.float32)
    write_cfcql(tmp_path / "x.h5", batch, **options)
    read = load_dataset(tmp_path / "x.h5", env="sc2", map_name="2s3z", quality="medium")
    assert same(read, data)
    meta = read.metadata
    assert (meta.env, meta.map_name, meta.quality) == ("sc2", "2s3z", "medium")
    assert meta.content_hash == data.metadata.content_hash
    assert meta.win_rate is None and "x.h5" in meta.source
    assert meta.notes == ("keys not read: probs",)
    assert meta.env_info() == data.metadata.env_info()


def test_a_foreign_file_may_cut_episodes(tmp_path, data, caplog):
    batch = padded(data)
    batch["terminated"][:] = 0
    write_cfcql(tmp_path / "x.h5", batch)
    assert load_dataset(tmp_path / "x.h5").metadata.n_cut == 3
    assert "3 episodes end before the limit of 7" in caplog.text


# ------------------------------------------------------------------------------ AlberDICE


def alberdice_batch(data: OfflineDataset) -> dict[str, np.ndarray]:
    batch = padded(data)
    onehot = np.eye(A, dtype=np.float32)[batch["actions"][..., 0]]
    return {**batch, "actions_onehot": onehot}


def test_alberdice_folder(tmp_path, data):
    write_alberdice(tmp_path / "optimal", alberdice_batch(data))
    read = load_dataset(tmp_path / "optimal", env="bridge", map_name="bridge")
    assert same(read, data)
    assert read.metadata.notes == ("keys not read: actions_onehot",)
    assert (read.metadata.env, read.metadata.episode_limit) == ("bridge", LIMIT)


def test_alberdice_ring_that_is_not_full(tmp_path, data):
    batch = {
        key: np.asfortranarray(np.concatenate([array, np.zeros_like(array)]))
        for key, array in alberdice_batch(data).items()
    }
    write_alberdice(tmp_path / "x", batch, n_episodes=len(data))
    assert same(load_dataset(tmp_path / "x"), data)


def test_long_episodes_are_cut_and_bootstrap(tmp_path, data, caplog):
    write_alberdice(tmp_path / "x", alberdice_batch(data))
    read = load_dataset(tmp_path / "x", episode_limit=4)
    np.testing.assert_array_equal(read.lengths, [3, 4, 1, 4])
    ends = read.arrays["terminated"][read.offsets[1:] - 2, 0]
    np.testing.assert_array_equal(ends, [1, 0, 1, 0])
    np.testing.assert_array_equal(
        read.arrays["obs"][read.offsets[3] :], data.arrays["obs"][data.offsets[3] :][:5]
    )
    assert read.metadata.episode_limit == 4 and read.metadata.n_cut == 0
    # An episode that ends a step beyond the limit keeps no terminal either.
    assert load_dataset(tmp_path / "x", episode_limit=2).arrays["terminated"].sum() == 1
    assert "2 of 4 episodes were longer than the limit of 4" in caplog.text
    assert any("2 of 4 episodes" in note for note in read.metadata.notes)


def test_our_own_files_are_cut_too(data, file):
    info = data.metadata.env_info() | {"episode_limit": 4}
    read = load_dataset(file, episode_limit=4, env_info=info)
    np.testing.assert_array_equal(read.lengths, [3, 4, 1, 4])
    np.testing.assert_array_equal(read.battle_won, data.battle_won * [1, 0, 1, 0])
    assert read.metadata.win_rate == read.battle_won.mean()
    assert read.metadata.content_hash != data.metadata.content_hash
    assert read.metadata.simulator == "jaxmarl 0.2.0" and read.metadata.notes


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: (f / "meta.json").unlink(), "meta.json"),
        (lambda f: (f / "meta.json").write_text("{"), "expected a JSON object"),
        (lambda f: (f / "meta.json").write_text('{"a": 1}'), "episodes_in_buffer"),
        (lambda f: (f / "meta.json").write_text('{"episodes_in_buffer": 0}'), "zero_episodes"),
        (lambda f: (f / "obs.npy").unlink(), "missing_key"),
        (lambda f: os.truncate(f / "obs.npy", 999), "obs.npy: expected"),
        (lambda f: os.truncate(f / "obs.npy", 0), "obs.npy: exp"),
        (lambda f: os.truncate(f / "obs.npy", 99_999), "bytes, expected"),
        (lambda f: np.save(f / "obs.npy", np.array([{}], dtype=object)), "expected a .npy array"),
        (lambda f: np.save(f / "obs.npy", np.float32(1)), "wrong_ndim"),
    ],
)
def test_damaged_alberdice_folder(tmp_path, data, damage, expected):
    folder = tmp_path / "x"
    write_alberdice(folder, alberdice_batch(data))
    damage(folder)
    message = error_of(folder)
    assert expected in message and str(folder) in message


# ------------------------------------------------------------------------------ bad input


def test_formats_are_recognised_by_content(tmp_path, data, file):
    renamed = tmp_path / "no_extension"
    os.rename(file, renamed)
    write_alberdice(tmp_path / "folder.h5", alberdice_batch(data))
    assert recognise(renamed) == "canonical" and recognise(tmp_path / "folder.h5") == "alberdice"
    assert list(REGISTRY) == ["canonical", "alberdice", "vault"]


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: p.write_text("hello"), "a text file"),
        (lambda p: p.write_text("<!DOCTYPE html><html>quota"), "a web page"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"\x80\x04\x95abc"), "a pickle, which is never opened"),
        (lambda p: p.write_bytes(b"\x89HDF\n\x1a\n" + bytes(99)), "a damaged HDF5 file"),
        (_zip, "a zip archive"),
        (lambda p: np.savez(p.open("wb"), a=np.zeros(3)), "a zip archive"),
        (lambda p: p.mkdir(), "a folder without meta.json"),
        (os.mkfifo, "neither a file nor a folder"),
        (lambda p: None, "no such file"),
    ],
)
def test_something_else(tmp_path, make, expected):
    path = tmp_path / "x.h5"
    make(path)
    message = error_of(path)
    assert expected in message and str(path) in message


def test_an_interrupted_download(file):
    content = file.read_bytes()
    for share in (0.001, 0.3, 0.6, 0.9, 0.999):
        file.write_bytes(content[: int(len(content) * share)])
        message = error_of(file)
        assert "truncated or damaged" in message or "no known dataset" in message


def _edit(file, key, change):
    with h5py.File(file, "r+") as stored:
        array = stored[key][:]
        change(array)
        stored[key][:] = array


def test_a_changed_value_is_found_by_the_hash(file):
    _edit(file, "reward", lambda x: x.__setitem__((0, 0), 3.0))
    assert "content_hash" in error_of(file)


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("episode_limit", LIMIT + 1, "T = episode_limit + 1"),
        ("n_steps", 3, "expected 16, which the data hold, found 3"),
        ("n_agents", "three", "expected int, found 'three'"),
        ("env", 3, "attribute 'env'"),
        ("format", "other", "expected 'offline-marl-dataset', found 'other'"),
        ("format_version", 99, "Update the program"),
        ("battle_won", np.zeros(9, np.uint8), "battle_won"),
        ("battle_won", np.array([0xF0], np.uint8), "win_rate"),
        ("source", None, "attribute 'source': expected str, found None"),
        ("format", None, "attribute 'format': expected str, found None"),  # still ours: its hash
        ("return_mean", 1.5, "which the data hold, found 1.5"),
        ("win_rate", 1.0, "which the data hold, found 1.0"),
        ("n_cut", 2, "which the data hold, found 2"),
    ],
)
def test_wrong_attributes(file, attribute, value, expected):
    with h5py.File(file, "r+") as stored:
        del stored.attrs[attribute]
        if value is not None:
            stored.attrs[attribute] = value
    assert expected in error_of(file)


def test_keys_that_are_no_datasets(tmp_path, data, file):
    """A group, a link out of the file, a link within it; and a number in the place of an array."""
    other = tmp_path / "other.h5"
    os.rename(file, other)
    for make in (
        lambda out: out.create_group("obs"),
        lambda out: out.__setitem__("obs", h5py.ExternalLink(str(other), "/obs")),
        lambda out: out.__setitem__("obs", h5py.SoftLink("/state")),
    ):
        batch = padded(data)
        del batch["obs"]
        write_cfcql(file, batch)
        with h5py.File(file, "r+") as out:
            make(out)
        assert "key 'obs': expected an array stored in the file" in error_of(file)
    with h5py.File(other, "r+") as stored:
        del stored[FILLED]
        stored[FILLED] = 1
    assert f"[wrong_ndim] key '{FILLED}'" in error_of(other)


def test_a_file_that_claims_too_much(tmp_path, data):
    batch = padded(data)
    write_cfcql(tmp_path / "x.h5", batch)
    with h5py.File(tmp_path / "x.h5", "r+") as out:
        del out["obs"]
        out.create_dataset("obs", shape=(10**9, 8, N, 6), dtype="f4", chunks=(1, 8, N, 6))
    assert "bytes can hold" in error_of(tmp_path / "x.h5")


@pytest.mark.parametrize("foreign", [False, True])
def test_flipped_bytes_give_an_error_or_valid_data(tmp_path, data, file, foreign):
    if foreign:
        write_cfcql(file, padded(data), compression="gzip")
    content = file.read_bytes()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(120):
        damaged = bytearray(content)
        for position in rng.integers(len(content), size=rng.integers(1, 4)):
            damaged[position] ^= rng.integers(1, 256)
        file.write_bytes(damaged)
        try:
            read = load_dataset(file)
        except DatasetError:
            refused += 1
        else:
            assert foreign or same(read, data)
    assert refused > 6


# ------------------------------------------------------------------------------ writing


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, data):
    path = tmp_path / "x.h5"
    with (
        pytest.raises(DatasetError, match="exists already"),
        CanonicalWriter(path, metadata()) as writer,
    ):
        writer.append(padded(data))
        path.write_text("mine")
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["x.h5"]


def test_an_interrupted_write_leaves_what_was_there(data, file):
    before = file.read_bytes()
    with (
        pytest.raises(KeyboardInterrupt),
        CanonicalWriter(file, metadata(), overwrite=True) as writer,
    ):
        writer.append(padded(data))
        assert len(os.listdir(file.parent)) == 2 and file.read_bytes() == before
        raise KeyboardInterrupt
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def refused_by_the_writer(path, *appended) -> str:
    with pytest.raises(DatasetError) as caught, CanonicalWriter(path, metadata()) as writer:
        for words in appended:
            writer.append(*words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),  # the rules have tests of their own; here, that they are applied
    [
        (lambda b: b.pop("obs"), "missing_key"),
        (lambda b: b["obs"].__setitem__((0, 0), np.nan), "finite_obs"),
        (lambda b: b.update(actions=b["actions"].astype(np.float32)), "wrong_dtype"),
    ],
)
def test_bad_batches_are_not_written(tmp_path, data, change, expected):
    batch = padded(data)
    change(batch)
    assert expected in refused_by_the_writer(tmp_path / "x.h5", (batch,))
    assert os.listdir(tmp_path) == []


def test_writer_casts_what_rounding_allows(tmp_path, data):
    batch = padded(data)
    batch["obs"] = batch["obs"].astype(np.float64)
    batch["terminated"] = batch["terminated"].astype(bool)
    batch["avail_actions"] = batch["avail_actions"].astype(np.int64)
    with CanonicalWriter(tmp_path / "x.h5", metadata()) as writer:
        writer.append(batch)
    assert same(load_dataset(tmp_path / "x.h5"), data)


def test_writer_refuses_nonsense(tmp_path, data):
    batch, path = padded(data), tmp_path / "x.h5"
    assert "no episode was written" in refused_by_the_writer(path)
    some = refused_by_the_writer(path, (batch, data.battle_won), (batch,))
    assert "some batches only" in some
    assert "expected 0 or 1" in refused_by_the_writer(path, (batch, np.full(len(data), 2)))
    with pytest.raises(DatasetError, match="a folder"):
        write_dataset(tmp_path, data, overwrite=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "cannot be written: No space left on device. The 0 episodes so far need"),
     (errno.EACCES, "cannot be written: Permission denied")],
)  # fmt: skip
def test_opening_fails(tmp_path, data, file, monkeypatch, number, expected):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(canonical.h5py, "File", fail)
        with pytest.raises(DatasetError, match=rf"(?s)x\.h5.*{expected}"):
            write_dataset(tmp_path / "x.h5", data)
    number = errno.EACCES  # root may read everything, so the refusal is played
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(DatasetError, match="no permission"):
        load_dataset(file)


FULL_DISK = """
import resource, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_dataset import make_dataset
from inspo.offline import write_dataset
from inspo.utils.errors import DatasetError
data = make_dataset(lengths=[6] * 4000)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    write_dataset(sys.argv[3], data)
except DatasetError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_is_one_clear_error(tmp_path):
    """A file-size limit stands in for the disk. HDF5 alone would crash: a process of its own."""
    words = [SRC, Path(__file__).parent, tmp_path / "x.h5"]
    command = [sys.executable, "-c", FULL_DISK, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert "cannot be written: File too large" in result.stdout and result.stderr == ""
    assert "x.h5" in result.stdout
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("foreign", [False, True])
def test_memory_of_loading(tmp_path, foreign):
    """At most 1.2 times the flat data, although the file is padded to many times that."""
    sizes = {"n_agents": 5, "n_actions": 11, "state_shape": 120, "obs_shape": 80}
    lengths = np.random.default_rng(0).integers(20, 80, 600)
    data = make_dataset(lengths, episode_limit=120, **sizes)
    if foreign:
        write_cfcql(tmp_path / "x.h5", data.episodes(np.arange(600), n_steps=121))
    else:
        write_dataset(tmp_path / "x.h5", data)
    tracemalloc.start()
    read = load_dataset(tmp_path / "x.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * read.nbytes


# ------------------------------------------------------------------------- other dtypes


@pytest.mark.parametrize(
    ("key", "dtype"),
    [
        *[("reward", dtype) for dtype in ("f8", ">f8", "f2", "i8", "u1")],
        *[("actions", dtype) for dtype in ("u1", "i4", "f4")],
        *[(key, "?") for key in ("avail_actions", "terminated", FILLED)],
    ],
)
def test_harmless_dtypes_are_cast_by_convert_and_named_by_readers(tmp_path, data, key, dtype):
    write = write_alberdice if dtype in ("f8", "u1", "?") else write_cfcql
    batch = padded(data)
    if key == "reward":
        batch[key] = np.round(np.abs(batch[key]))  # what all of these hold
    expected = {name: array.copy() for name, array in batch.items()}
    write(tmp_path / "x", batch | {key: batch[key].astype(dtype)})
    command = f"python src/dataset.py convert {tmp_path / 'x'} NEW.h5"
    assert command in error_of(tmp_path / "x")
    read = load_dataset(tmp_path / "x", cast=True)
    for name, array in read.episodes(range(len(read)), LIMIT + 1).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
        assert array.dtype == expected[name].dtype
    assert any(key in note and "cast from" in note for note in read.metadata.notes)


@pytest.mark.parametrize(
    ("key", "value", "dtype"),
    [
        ("reward", 1e300, "f8"),
        ("reward", 2**24 + 1, "i8"),
        ("actions", 0.5, "f4"),
        ("actions", np.nan, "f4"),
        ("avail_actions", 2**40, "i8"),
        ("reward", 1, "c8"),
    ],
)
def test_values_that_a_cast_would_change_are_refused(tmp_path, data, key, value, dtype):
    batch = padded(data)
    batch[key] = batch[key].astype(dtype)
    batch[key][0, 0] = value
    write_cfcql(tmp_path / "x.h5", batch)
    error = error_of(tmp_path / "x.h5", cast=True)
    assert f"key '{key}'" in error and ("can hold, found" in error or "complex64" in error)


# ------------------------------------------------------------------- what a file says of itself


@pytest.mark.parametrize("name", ["filled.npy", "meta.json"])
def test_a_file_without_end_is_no_part_of_a_folder(tmp_path, data, name):
    write_alberdice(tmp_path / "x", padded(data))
    (tmp_path / "x" / name).unlink()
    (tmp_path / "x" / name).symlink_to("/dev/zero")
    assert name.split(".")[0] in error_of(tmp_path / "x")


def test_a_link_to_itself(tmp_path):
    (tmp_path / "x").symlink_to("x")
    assert "leads nowhere" in error_of(tmp_path / "x")
