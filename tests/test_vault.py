"""OG-MARL's vaults: against flashbax's own writer and reader, and what can be wrong with one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_dataset import LIMIT, A, N, S, make_dataset, same
from test_formats import error_of

from inspo.offline import OfflineDataset, load_dataset
from inspo.offline.formats import recognise, vault
from inspo.offline.offline_dataset import FIELDS
from inspo.utils.errors import DatasetError

tensorstore = pytest.importorskip("tensorstore")


@pytest.fixture(scope="module")
def data() -> OfflineDataset:
    return make_dataset()


def experience(data: OfflineDataset) -> dict:
    """What a vault holds of a dataset, by a loop over the episodes' transitions."""
    steps = {name: [] for name in vault.LEAVES}
    for e, length in enumerate(data.lengths):
        for t in range(length):
            row = {key: array[data.offsets[e] + t] for key, array in data.arrays.items()}
            ended = bool(row["terminated"][0])
            steps["observations"].append(row["obs"])
            steps["actions"].append(row["actions"][:, 0].astype(np.int32))
            steps["rewards"].append(np.repeat(row["reward"], N))
            steps["terminals"].append(np.full(N, ended))
            steps["truncations"].append(np.full(N, t == length - 1 and not ended))
            steps["infos.state"].append(row["state"])
            steps["infos.legals"].append(row["avail_actions"].astype(bool))
    return {name: np.stack(values)[None] for name, values in steps.items()}


def write_leaves(folder, leaves: dict, index=None) -> None:
    """A vault from arrays `[1, T, ...]`, by tensorstore, as flashbax lays it out."""
    folder.mkdir(parents=True)
    structure = vault._nested({name: str(a.shape) for name, a in leaves.items()})
    content = {"version": 1.0, "structure_shape": structure, "structure_dtype": structure}
    (folder / "metadata.json").write_text(json.dumps(content))
    for name, array in leaves.items():
        shape = (array.shape[0], vault.TIME_AXIS, *array.shape[2:])
        store = vault._create(folder, name + ".", array.dtype, shape)
        store[:, : array.shape[1]].write(array).result()
    n_steps = leaves["observations"].shape[1] if index is None else index
    store = vault._create(folder, vault.LENGTH, np.dtype(np.int32), (1,))
    store.write(np.array([n_steps], dtype=np.int32)).result()


def expected(data: OfflineDataset) -> dict[str, np.ndarray]:
    """The dataset with what a vault cannot hold filled as the reader says."""
    arrays = {key: array.copy() for key, array in data.arrays.items()}
    for last in data.offsets[1:] - 1:
        for key in ("state", "obs", "avail_actions"):
            arrays[key][last] = arrays[key][last - 1]
        for key in ("actions", "reward", "terminated"):
            arrays[key][last] = 0
    return arrays


# ------------------------------------------------------------------------------ flashbax


@pytest.fixture(scope="module")
def flashbax_vault():
    return pytest.importorskip("flashbax.vault").Vault


def test_a_vault_of_flashbax_is_read(tmp_path, data, flashbax_vault, monkeypatch):
    import jax.numpy as jnp
    from flashbax.buffers.trajectory_buffer import TrajectoryBufferState

    monkeypatch.chdir(tmp_path)
    leaves = {name: jnp.asarray(array) for name, array in experience(data).items()}
    tree = {name: array for name, array in leaves.items() if "." not in name}
    tree["infos"] = {"state": leaves["infos.state"], "legals": leaves["infos.legals"]}
    state = TrajectoryBufferState(
        experience=tree, current_index=jnp.array(0), is_full=jnp.array(True)
    )
    written = flashbax_vault("2s3z.vlt", tree, rel_dir=".", vault_uid="Medium-Replay")
    half = data.lengths.sum() // 2
    written.write(state, source_interval=(0, half))
    written.write(state, source_interval=(half, data.lengths.sum()))

    read = load_dataset(tmp_path / "2s3z.vlt")
    assert read.metadata.map_name == "2s3z" and read.metadata.quality == "medium_replay"
    assert read.metadata.episode_limit == LIMIT
    np.testing.assert_array_equal(read.lengths, data.lengths)
    for key, array in expected(data).items():
        assert read.arrays[key].dtype == FIELDS[key].dtype
        np.testing.assert_array_equal(read.arrays[key], array, err_msg=key)
    assert vault.REPEATED in read.metadata.notes


def test_flashbax_reads_what_we_write(tmp_path, data, flashbax_vault, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vault.write(tmp_path / "2s3z.vlt" / "Good", data)
    tree = flashbax_vault("2s3z.vlt", rel_dir=".", vault_uid="Good").read().experience
    flat = {name: tree[name] for name in tree if name != "infos"}
    flat |= {f"infos.{name}": array for name, array in tree["infos"].items()}
    wanted = experience(data)
    assert flat.keys() == wanted.keys()
    for name, array in wanted.items():
        assert flat[name].dtype == array.dtype, name
        np.testing.assert_array_equal(np.asarray(flat[name]), array, err_msg=name)


# ------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("in_memory", [True, False])
def test_round_trip_keeps_all_that_a_vault_stores(tmp_path, data, in_memory):
    vault.write(tmp_path / "x.vlt", data)
    read = load_dataset(tmp_path / "x.vlt", in_memory=in_memory)
    meta = data.metadata
    stripped = OfflineDataset.build(expected(data), data.lengths, meta, data.battle_won)
    assert same(read, stripped)
    assert replace(read.metadata, notes=(), created_by="") == stripped.metadata
    np.testing.assert_array_equal(read.battle_won, data.battle_won)
    vault.write(tmp_path / "again.vlt", read)
    assert same(load_dataset(tmp_path / "again.vlt"), read)
    cut = load_dataset(tmp_path / "x.vlt", episode_limit=4, in_memory=in_memory)
    np.testing.assert_array_equal(cut.lengths, [3, 4, 1, 4])
    np.testing.assert_array_equal(cut.battle_won, data.battle_won * [1, 0, 1, 0])


def test_what_a_vault_lacks_is_filled_and_noted(tmp_path, data):
    leaves = experience(data)
    del leaves["infos.state"], leaves["infos.legals"]
    leaves["actions"][0, 0, 0] = A - 1
    leaves["truncations"][:] = False
    write_leaves(tmp_path / "x", {k: v[:, :-2] for k, v in leaves.items()})
    read = load_dataset(tmp_path / "x")
    assert read.arrays["avail_actions"].all() and read.metadata.n_actions == A
    np.testing.assert_array_equal(read.arrays["state"], read.arrays["obs"].reshape(-1, N * 6))
    # Without its truncation the second episode runs into the third, and the last has no end.
    np.testing.assert_array_equal(read.lengths, [3, 8, 3])
    assert read.metadata.n_cut == 1
    assert {vault.NO_STATE, vault.NO_MASKS, vault.UNFINISHED} <= set(read.metadata.notes)


def test_other_dtypes_are_read_if_they_lose_nothing(tmp_path, data):
    leaves = experience(data)
    leaves["infos.legals"] = leaves["infos.legals"].astype(np.float32)
    leaves["actions"] = leaves["actions"].astype(np.int64)
    leaves["terminals"] = leaves["terminals"].astype(np.float32)
    write_leaves(tmp_path / "x", leaves)
    np.testing.assert_array_equal(load_dataset(tmp_path / "x").arrays["obs"], expected(data)["obs"])
    leaves["infos.legals"][0, 2] = 0.5
    write_leaves(tmp_path / "y", leaves)
    assert "'infos.legals': expected values that int32 can hold" in error_of(tmp_path / "y")


# ------------------------------------------------------------------------------ bad input


def _set(name, place, value):
    def change(leaves):
        leaves[name][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaves: leaves.pop("rewards"), "[missing_key] key 'rewards'"),
        (_set("observations", (0, 4, 1, 0), np.nan), "[finite_obs]"),
        (_set("actions", (0, 4, 1), A), "[action_range]"),
        (_set("infos.legals", (0, 2, 1), False), "[no_action]"),
        (_set("rewards", (0, 4, 1), 77), "one reward shared by all agents"),
        (lambda x: x.update(actions=x["actions"].astype("f4")), "continuous actions are not"),
        (lambda x: x.update(actions=x["actions"][:, :, :2]), "3 agents as 'observations' has"),
        (lambda x: x.update(observations=x["observations"][:, :, 0]), "[wrong_shape]"),
        (lambda x: x.update(terminals=np.repeat(x["terminals"], 2, axis=0)), "[wrong_shape]"),
    ],
)
def test_wrong_contents(tmp_path, data, change, message):
    leaves = experience(data)
    change(leaves)
    write_leaves(tmp_path / "x", leaves)
    assert message in error_of(tmp_path / "x")


def _forget(pattern):
    return lambda folder: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in
                           folder.glob(pattern)]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_forget("d/*"), "truncated or damaged"),
        (lambda f: (f / "metadata.json").write_text("{"), "expected a JSON object"),
        (lambda f: (f / "metadata.json").write_text("{}"), "'structure_shape'"),
        (lambda f: (f / "manifest.ocdbt").write_bytes(b"x" * 99), "truncated or damaged"),
        (lambda f: os.truncate(f / "manifest.ocdbt", 30), "truncated or damaged"),
        (_forget("manifest.ocdbt"), "no known dataset"),
        (lambda f: os.mkfifo(f / "d" / "pipe"), "expected a file"),
    ],
)
def test_damaged_vaults(tmp_path, data, damage, message):
    vault.write(tmp_path / "x.vlt", data)
    damage(tmp_path / "x.vlt")
    found = error_of(tmp_path / "x.vlt")
    assert message in found and str(tmp_path / "x.vlt") in found


@pytest.mark.parametrize(
    ("index", "message"),
    [(0, "at least 1 time step"), (-3, "at least 1"), (2**31 - 1, "bytes can hold")],
)
def test_a_length_that_lies(tmp_path, data, index, message):
    write_leaves(tmp_path / "x", experience(data), index)
    assert message in error_of(tmp_path / "x")


def test_a_folder_of_several_vaults_asks_which(tmp_path, data):
    for name in ("Good", "Poor"):
        vault.write(tmp_path / "2s3z.vlt" / name, data)
    assert recognise(tmp_path / "2s3z.vlt") == "vault"
    message = error_of(tmp_path / "2s3z.vlt")
    assert "holds 2 vaults" in message and str(tmp_path / "2s3z.vlt" / "Poor") in message
    assert load_dataset(tmp_path / "2s3z.vlt" / "Poor").metadata.quality == data.metadata.quality


def test_flipped_bytes_give_clear_errors_or_valid_data(tmp_path, data):
    vault.write(tmp_path / "x.vlt", data)
    files = sorted(f for f in (tmp_path / "x.vlt").rglob("*") if f.is_file())
    rng = np.random.default_rng(0)
    for _ in range(20):
        file = files[rng.integers(len(files))]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(damaged))
        try:
            read = load_dataset(tmp_path / "x.vlt")
            assert read.arrays["state"].shape == (read.n_rows, S)
        except DatasetError as error:
            assert str(tmp_path / "x.vlt") in str(error)
        file.write_bytes(whole)


# ------------------------------------------------------------------------------ writing
