"""Batches drawn from a dataset: contents, trimming, no replacement, an exact stream."""

import numpy as np
import pytest
import torch as th
from cases import SHAPES, build, descend_plainly, random_batch
from test_behaviour import fit, known_policy_data
from test_dataset import make_dataset

from inspo.offline import OfflineDataset, load_dataset, write_dataset
from inspo.offline.buffer import OfflineBuffer, RowsElsewhere
from inspo.offline.offline_dataset import FIELDS
from inspo.offline.scratch import is_on_disk
from inspo.utils.errors import DatasetError
from inspo.utils.memory import free_memory

LENGTHS = np.array([4, 1, 9, 3, 3, 2])


@pytest.fixture
def dataset():
    return make_dataset(LENGTHS, **SHAPES)


def test_batches_hold_what_the_dataset_holds(dataset):
    buffer = OfflineBuffer(dataset, 0)
    assert len(buffer) == 6
    for chosen in ([0], [5, 1], [2, 0, 4], [3, 3]):
        batch = buffer.batch(chosen)
        assert batch.max_seq_length == LENGTHS[chosen].max() + 1
        for place, e in enumerate(chosen):
            rows = LENGTHS[e] + 1
            assert batch["filled"][place, :, 0].sum() == rows
            assert batch["filled"][place, :rows].all()
            for key in FIELDS:
                held = th.from_numpy(dataset.arrays[key][dataset.rows_of([e])])
                assert th.equal(batch[key][place, :rows], held), key
                assert (batch[key][place, rows:] == 0).all() and batch[key].dtype == held.dtype


def test_added_keys_come_row_by_row(dataset):
    buffer = OfflineBuffer(dataset, 0)
    rows = int((LENGTHS + 1).sum())
    buffer.add("number", th.arange(rows, dtype=th.float32)[:, None])
    batch = buffer.batch([2, 1])
    first = int((LENGTHS[:2] + 1).sum())
    assert batch["number"][0, :, 0].tolist() == list(range(first, first + 10))
    start = int(LENGTHS[0] + 1)
    assert batch["number"][1, :, 0].tolist() == [start, start + 1] + [0] * 8
    with pytest.raises(ValueError, match="rows"):
        buffer.add("short", th.zeros(rows - 1))


@pytest.mark.parametrize("algorithm", ["inspo", "icq", "omiga"])
def test_standardised_learning_is_learning_from_standardised_data(dataset, algorithm):
    """Against data that numpy has standardised; what does not vary is only moved to 0."""
    for key in ("obs", "state"):
        dataset.arrays[key][...] *= 7
        dataset.arrays[key][..., 1] = 3.0
    plain = OfflineDataset(dict(dataset.arrays), dataset.lengths, dataset.metadata)
    for key in ("obs", "state"):
        flat = dataset.arrays[key].reshape(-1, dataset.arrays[key].shape[-1]).astype(np.float64)
        std = np.where(flat.std(0) > 1e-6, flat.std(0), 1)
        plain.arrays[key] = ((dataset.arrays[key] - flat.mean(0)) / std).astype(np.float32)
    weights, outputs = [], []
    for data, standardise in ((dataset, True), (plain, False)):
        learner, _, _ = build(algorithm, standardise=standardise, critic_warmup=0.0)
        buffer = OfflineBuffer(data, 0)
        if standardise:
            learner.mac.set_moments(*buffer.moments("obs"))
            buffer.standardise("state")
        batch = buffer.batch(range(6))
        for key in ("behaviour_log_probs", "behaviour_log_prob_others"):
            batch.data[key] = random_batch(LENGTHS.tolist(), seed=1)[key]
        descend_plainly(learner)
        th.manual_seed(1)
        learner.train(batch, 50, 6)
        networks = th.nn.ModuleList(learner.networks.values())
        weights.append(th.cat([p.flatten() for p in networks.parameters()]))
        learner.mac.init_hidden(6)
        outputs.append(learner.mac.forward(batch, 0))
    assert th.allclose(*weights, atol=1e-5)
    assert th.allclose(*outputs, atol=1e-5)


def test_samples_have_no_episode_twice_and_all_come(dataset):
    buffer = OfflineBuffer(dataset, 1)
    first = dataset.arrays["state"][dataset.offsets[:6]].tolist()
    place = {tuple(state): e for e, state in enumerate(first)}
    seen = []
    for _ in range(200):
        batch = buffer.sample(3)
        chosen = [place[tuple(row.tolist())] for row in batch["state"][:, 0]]
        assert len(set(chosen)) == 3
        assert batch.max_seq_length == LENGTHS[chosen].max() + 1
        seen += chosen
    counts = np.bincount(seen, minlength=6)
    assert abs(counts - 100).max() < 36  # five standard deviations


def test_the_stream_goes_on_after_a_restart(dataset):
    buffer, twin = OfflineBuffer(dataset, 1), OfflineBuffer(dataset, 2)
    for size in (7, 0):
        with pytest.raises(DatasetError, match=f"batch_size is {size}"):
            buffer.sample(size)
    buffer.sample(3)
    twin.load_state_dict(buffer.state_dict())
    for _ in range(4):
        assert th.equal(buffer.sample(3)["state"], twin.sample(3)["state"])
    same, other = OfflineBuffer(dataset, 7), OfflineBuffer(dataset, 8)
    draws = [[b.sample(6)["state"][:, 0] for _ in range(3)] for b in (same, other)]
    assert not all(th.equal(x, y) for x, y in zip(*draws))


# Rows on disk


@pytest.fixture
def stored(tmp_path, dataset):
    path = tmp_path / "toy.h5"
    write_dataset(path, dataset)
    return path


def test_the_same_seed_gives_the_same_batches_from_memory_and_from_disk(stored):
    buffers = []
    for in_memory in (True, False):
        dataset = load_dataset(stored, in_memory=in_memory)
        assert all(is_on_disk(a) != in_memory for a in dataset.arrays.values())
        buffers.append(OfflineBuffer(dataset, 5))
        rows = th.arange(dataset.n_rows)
        buffers[-1].add("number", rows[:, None])
    some, (held, on_disk) = rows[[7, 0, 7, 3]], buffers
    for key in FIELDS:  # indexed like a tensor
        assert on_disk.rows[key].shape == held.rows[key].shape
        assert th.equal(on_disk.rows[key][some], held.rows[key][some])
    for _ in range(5):
        first, second = (buffer.sample(4) for buffer in buffers)
        assert {*first.keys()} == {*second.keys()} == {*FIELDS, "filled", "number"}
        for key in [*FIELDS, "filled", "number"]:
            assert first[key].dtype == second[key].dtype and th.equal(first[key], second[key]), key
            assert th.equal(first.rows(key), first.packed.pack(first[key])), key


def test_rows_are_standardised_alike_in_memory_and_on_disk(stored):
    batches = []
    for in_memory in (True, False):
        buffer = OfflineBuffer(load_dataset(stored, in_memory=in_memory), 0)
        buffer.standardise("state")
        batches.append(buffer.batch([2, 0])["state"])
    assert th.equal(*batches)


def test_auto_takes_memory_only_while_there_is_enough(stored, monkeypatch):
    size = load_dataset(stored).nbytes
    for free, expected in ((None, False), (2 * size, False), (size, True)):
        monkeypatch.setattr("inspo.offline.scratch.free_memory", lambda free=free: free)
        dataset = load_dataset(stored, in_memory="auto")
        assert all(is_on_disk(a) == expected for a in dataset.arrays.values()), free


def test_what_a_gpu_has_no_room_for_stays_in_the_hosts_memory(stored, monkeypatch):
    dataset, batches = load_dataset(stored), []
    for free in (2 * dataset.nbytes, dataset.nbytes):
        monkeypatch.setattr("inspo.offline.buffer.free_on", lambda device, free=free: free)
        buffer = OfflineBuffer(dataset, 0)
        assert isinstance(buffer.rows["obs"], RowsElsewhere) == (free == dataset.nbytes)
        batches.append(buffer.sample(3))
    assert all(th.equal(batches[0][key], batches[1][key]) for key in FIELDS)


def test_the_scratch_file_has_no_name_and_a_full_disk_is_one_error(stored, monkeypatch):
    before = sorted(stored.parent.iterdir())
    dataset = load_dataset(stored, in_memory=False)
    assert sorted(stored.parent.iterdir()) == before
    assert dataset.metadata == load_dataset(stored).metadata

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"no room on disk .*No space left"):
        load_dataset(stored, in_memory=False)


def test_free_memory_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr("inspo.utils.memory.CGROUP", tmp_path)
    machine = free_memory()
    assert machine is None or machine > 1 << 20
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    assert free_memory() == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == machine or free_memory() > 1 << 20


def test_behaviour_policies_fitted_from_disk_are_the_same(tmp_path):
    write_dataset(tmp_path / "x.h5", known_policy_data(60)[0])
    settings = {"updates": 20, "others_updates": 20, "eval_interval": 10}
    found = []
    for in_memory in (True, False):
        dataset = load_dataset(tmp_path / "x.h5", in_memory=in_memory)
        behaviour, buffer, *_ = fit(dataset, tmp_path / str(in_memory), **settings)
        behaviour.annotate(buffer)
        found.append(buffer.batch([3, 1, 40]))
    for key in ("behaviour_log_probs", "behaviour_log_prob_others"):
        assert th.equal(found[0][key], found[1][key]) and found[0][key].abs().sum() > 0
