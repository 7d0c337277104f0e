"""The tool for datasets: every command, what a round trip keeps, bad input, interrupted writes."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from cases import in_a_child
from test_dataset import LIMIT, A, N, make_dataset, padded, same
from test_formats import write_cfcql

from inspo import dataset as tool_main
from inspo.experiments.dataset_plots import draw_dataset
from inspo.offline import OfflineDataset, load_dataset, write_dataset
from inspo.offline.formats import alberdice, canonical_writer, folders, vault
from inspo.offline.inspection import inspect, numbered, shuffle_each, to_text
from inspo.offline.offline_dataset import FIELDS, FILLED
from inspo.offline.operations import (
    Choice,
    choose,
    episode_counts,
    keep_episodes,
    parse_part,
    target_format,
)
from inspo.offline.sources import known_datasets
from inspo.utils.errors import DatasetError, UserError

LENGTHS = (3, LIMIT, 1, 5, 2, 4, 6, 1, LIMIT, 3)


@pytest.fixture
def data() -> OfflineDataset:
    return make_dataset(LENGTHS)


@pytest.fixture
def file(tmp_path, data) -> Path:
    path = tmp_path / "medium.h5"
    write_dataset(path, data)
    return path


def run(*words) -> int:
    return tool_main.main([str(word) for word in words])


def refused(capsys, *words) -> str:
    """What is said of a command that ends with status 2 and one error."""
    assert run(*words) == 2
    out = capsys.readouterr()
    assert out.err.startswith("error: ") and "Traceback" not in out.err
    return out.err


# ------------------------------------------------------------------------------ convert


def test_from_cfcql_through_alberdice_and_back(tmp_path, data):
    write_cfcql(tmp_path / "x.h5", padded(data))
    names = ("--env", "sc2", "--map-name", "2s3z", "--quality", "medium")
    assert run("convert", tmp_path / "x.h5", tmp_path / "folder", *names) == 0
    assert run("convert", tmp_path / "folder", tmp_path / "back.h5") == 0
    back = load_dataset(tmp_path / "back.h5")
    assert same(back, data)
    meta = back.metadata
    assert (meta.env, meta.map_name, meta.quality) == ("sc2", "2s3z", "medium")
    assert "x.h5" in meta.source and meta.content_hash == data.metadata.content_hash
    with h5py.File(tmp_path / "back.h5") as ours, h5py.File(tmp_path / "x.h5") as theirs:
        for key in (*FIELDS, FILLED):
            np.testing.assert_array_equal(ours[key][:], theirs[key][:], err_msg=key)
            assert ours[key].dtype == theirs[key].dtype


@pytest.mark.parametrize("target", ["folder", "x.h5"])
def test_our_metadata_survive_the_way(tmp_path, data, file, target):
    assert run("convert", file, tmp_path / target) == 0
    back = load_dataset(tmp_path / target)
    np.testing.assert_array_equal(back.battle_won, data.battle_won)
    notes = ("keys not read: actions_onehot",) if target == "folder" else ()
    created = back.metadata.created_by
    assert back.metadata == replace(data.metadata, notes=notes, created_by=created)


def test_the_limit_of_a_vault(capsys, tmp_path, data, file):
    short = data.select([0, 2, 4])
    vault.write(tmp_path / "x.vlt", short)
    content = json.loads((tmp_path / "x.vlt" / "metadata.json").read_text())
    del content[folders.KEY]
    (tmp_path / "x.vlt" / "metadata.json").write_text(json.dumps(content))
    assert load_dataset(tmp_path / "x.vlt").metadata.episode_limit == 3
    source, target = tmp_path / "x.vlt", tmp_path / "y.h5"
    assert run("convert", source, target, "--episode-limit", 6) == 0
    assert load_dataset(target).metadata.episode_limit == 6
    assert "at least 1" in refused(
        capsys, "convert", source, target, "--force", "--episode-limit=0"
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x/meta.json", {"battle_won": "zz"}, "one bit for each"),
        ("x/meta.json", {"battle_won": "00"}, "one bit for each"),
        ("x/meta.json", None, "names, notes and limit"),
        ("x/meta.json", {"notes": "a"}, "names, notes and limit"),
        ("x/meta.json", {"episode_limit": "9"}, "names, notes and limit"),
        ("x/meta.json", {"content_hash": "0" * 64}, "which the data hold"),
        ("x.vlt/metadata.json", {"win_rate": 0.999}, "which the data hold"),
        ("x.vlt/metadata.json", {"battle_won": "00"}, "one bit for each"),
    ],
)
def test_stated_metadata_that_are_damaged(capsys, tmp_path, file, name, change, message):
    path = tmp_path / name
    assert run("convert", file, path.parent) == 0 and run("validate", path.parent) == 0
    content = json.loads(path.read_text())
    content[folders.KEY] = change and content[folders.KEY] | change
    path.write_text(json.dumps(content))
    error = refused(capsys, "validate", path.parent)
    assert message in error and str(path.parent) in error
    # A smaller limit cuts episodes: other data, which the hash and the win rate are not of.
    status = run("convert", path.parent, tmp_path / "y.h5", "--episode-limit", 2)
    assert status == (0 if "hold" in message else 2)


def test_the_layout_of_alberdice(tmp_path, data):
    alberdice.write(tmp_path / "x", data)
    arrays = {path.stem: np.load(path) for path in (tmp_path / "x").glob("*.npy")}
    batch = padded(data)
    for key in (*FIELDS, FILLED):
        assert arrays[key].dtype == batch[key].dtype
        np.testing.assert_array_equal(arrays.pop(key), batch[key])
    onehot = arrays.pop("actions_onehot")
    assert onehot.dtype == np.float32 and onehot.shape == (len(data), LIMIT + 1, N, A)
    mask = batch[FILLED][..., 0] > 0
    np.testing.assert_array_equal(onehot[mask].argmax(-1), batch["actions"][mask][..., 0])
    assert (onehot[mask].sum(-1) == 1).all() and not onehot[~mask].any() and not arrays


@pytest.mark.parametrize(
    ("name", "to", "expected"),
    [("a.h5", None, "canonical"), ("a.hdf5", None, "canonical"), ("a.vlt", None, "vault"),
     ("a.vlt/Good", None, "vault"), ("folder", None, "alberdice"), ("a.h5", "vault", "vault")],
)  # fmt: skip
def test_the_format_to_write(name, to, expected):
    assert target_format(Path(name), to) == expected


def test_a_name_that_says_no_format(capsys, file, tmp_path):
    assert "does not say which format" in refused(capsys, "convert", file, tmp_path / "a.npz")
    with pytest.raises(SystemExit) as stop:
        run("convert", file, tmp_path / "a", "--to", "npz")
    assert stop.value.code == 2


# ------------------------------------------------------------------------------ targets


@pytest.mark.parametrize("target", ["x.h5", "x.vlt", "x"])
def test_what_exists_is_overwritten_with_force_alone(capsys, tmp_path, data, file, target):
    path = tmp_path / target
    assert run("convert", file, path) == 0
    assert "or use --force" in refused(capsys, "convert", file, path)
    assert run("convert", file, path, "--force") == 0
    assert sorted(os.listdir(tmp_path)) == sorted(["medium.h5", target])
    with pytest.raises(DatasetError, match="or remove it") as caught:
        write_dataset(file, data)  # as a collection does, which has no such option
    assert "--force" not in str(caught.value)


@pytest.mark.parametrize(
    ("inside", "ours"), [("x", True), ("x/d", False), ("x.vlt/d", True), ("x/deeper/still", True)]
)
def test_force_never_removes_a_folder_that_holds_anything_else(
    capsys, tmp_path, file, inside, ours
):
    path, notes = tmp_path / inside.partition("/")[0], tmp_path / inside / "notes.txt"
    if ours:
        assert run("convert", file, path) == 0
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text("mine")
    assert "is never replaced" in refused(capsys, "convert", file, path, "--force")
    assert notes.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == sorted(["medium.h5", path.name])


def test_force_never_removes_a_file_that_is_no_dataset_of_ours(capsys, tmp_path, data, file):
    write_cfcql(tmp_path / "theirs.h5", padded(data))
    (tmp_path / "text.h5").write_text("mine")
    os.symlink(tmp_path / "text.h5", tmp_path / "link.h5")
    for name in ("theirs.h5", "text.h5", "link.h5"):
        before = (tmp_path / name).read_bytes()
        for words in (("convert", file), ("subsample", file), ("mix", f"{file}:2")):
            error = refused(capsys, *words, tmp_path / name, "--force")
            assert "is never replaced" in error and name in error
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("kill_after", [1, 2])
def test_a_kill_while_a_folder_is_replaced_loses_nothing(tmp_path, data, file, kill_after):
    target, count, rename = tmp_path / "x", [], os.replace
    assert run("convert", file, target) == 0
    write_dataset(tmp_path / "new.h5", data.select([0, 1]))

    def replace_and_die(source, target):
        rename(source, target)
        count.append(1)
        if len(count) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed():
        os.replace = replace_and_die
        run("convert", tmp_path / "new.h5", target, "--force")

    assert in_a_child(killed) == -signal.SIGKILL
    assert len(load_dataset(target)) == (len(data) if kill_after == 1 else 2)
    for left in tmp_path.glob(".*"):  # as if the kill were long ago
        os.utime(left, (0, 0))
    assert run("convert", file, target, "--force") == 0
    assert sorted(os.listdir(tmp_path)) == ["medium.h5", "new.h5", "x"]


def test_the_source_is_never_the_target(capsys, file):
    assert "is what is read" in refused(capsys, "convert", file, file, "--force")
    assert "is what is read" in refused(capsys, "mix", f"{file}:2", file, "--force")
    assert load_dataset(file)


# ------------------------------------------------------------------------------ validate


def test_validate_counts_all_and_names_the_first_of_each(capsys, tmp_path, data, file):
    assert run("validate", file) == 0
    assert "valid (canonical), 10 episodes" in capsys.readouterr().out
    batch = padded(data)
    batch["obs"][3, 2, 1, 0] = np.nan
    batch["obs"][5, 1, 0, 0] = np.inf
    batch["actions"][6, 4, 2] = A
    batch["avail_actions"][0, 1, 0] = 0
    write_cfcql(tmp_path / "x.h5", batch)
    error = refused(capsys, "validate", tmp_path / "x.h5")
    assert "[finite_obs]" in error and "2 in all (first at episode 3, step 2, agent 1)" in error
    assert "[action_range]" in error and "1 in all (first at episode 6, step 4, agent 2)" in error
    assert "[no_action]" in error and "[action_available]" in error


def test_pickles_are_refused_with_the_way_round(capsys, tmp_path):
    with zipfile.ZipFile(tmp_path / "episode_0.pth", "w") as archive:
        archive.writestr("episode_0/data.pkl", b"\x80\x02.")
    (tmp_path / "old.pkl").write_bytes(b"\x80\x04\x95abc")
    for path in (tmp_path / "episode_0.pth", tmp_path / "old.pkl", tmp_path):
        error = refused(capsys, "validate", path)
        assert "never opened" in error and "download omiga/" in error, path


# ------------------------------------------------------------------------------ inspect


def test_inspect_against_loops(data):
    found = inspect(data)
    rows = np.flatnonzero(data.is_transition())
    actions = [tuple(data.arrays["actions"][row, :, 0].tolist()) for row in rows]
    k = len(actions)

    def loop_entropy(items):
        return -sum(items.count(x) / k * np.log(items.count(x) / k) for x in set(items))

    own = [loop_entropy([a[i] for a in actions]) for i in range(N)]
    np.testing.assert_allclose(found.dependence.agent_entropy, own)
    assert found.dependence.joint_entropy == pytest.approx(loop_entropy(actions))
    total = sum(own) - loop_entropy(actions)
    assert found.dependence.total_correlation == pytest.approx(total)
    pair = own[0] + own[2] - loop_entropy([(a[0], a[2]) for a in actions])
    assert found.dependence.mutual_information[0, 2] == pytest.approx(pair)
    assert found.dependence.given_state is None  # no state comes twice
    coverage = found.coverage
    assert coverage.joint_actions == len(set(actions)) and coverage.possible == A**N
    assert coverage.counts.sum() == coverage.transitions == k
    assert coverage.states == coverage.state_actions == k
    single = [(data.arrays["avail_actions"][row, i].sum() == 1) for row in rows for i in range(N)]
    assert coverage.forced == pytest.approx(np.mean(single))
    assert inspect(data).as_dict() == found.as_dict()
    assert all(line in to_text(found) for line in ("joint actions", "total correlation"))


def test_dependence_of_agents_that_act_as_one_and_of_independent_ones():
    data = make_dataset([LIMIT] * 200)
    data.arrays["state"][:] = 1
    rng = np.random.default_rng(0)
    data.arrays["actions"][:] = rng.integers(0, A, (data.n_rows, 1, 1))
    together = inspect(data)
    assert together.coverage.joint_actions == A and together.coverage.states == 1
    expected = 2 * together.dependence.joint_entropy
    assert together.dependence.total_correlation == pytest.approx(expected)
    assert together.dependence.given_state == pytest.approx(expected)
    data.arrays["actions"][:] = rng.integers(0, A, (data.n_rows, N, 1))
    apart = inspect(data).dependence
    assert apart.total_correlation == pytest.approx(apart.shuffled, abs=0.02)
    # Agents that both follow the state are dependent, but not in any one state.
    state = rng.integers(0, 2, data.n_rows)
    data.arrays["state"][:] = state[:, None]
    data.arrays["actions"][:] = state[:, None, None]
    follow = inspect(data).dependence
    assert follow.total_correlation > 1.3 and follow.given_state == pytest.approx(0, abs=1e-9)
    many = rng.integers(0, 50, (300, 40))  # more rows than a product of their ranges could number
    assert len(np.unique(numbered(many))) == 300
    np.testing.assert_array_equal(np.sort(shuffle_each(many), axis=0), np.sort(many, axis=0))


def test_inspect_prints_numbers_and_draws(capsys, tmp_path, file, data):
    assert run("inspect", file, "--json", "--plot", tmp_path / "x.png") == 0
    out = capsys.readouterr()
    numbers = json.loads(out.out)
    assert numbers["n_episodes"] == len(data)
    assert numbers["win"]["mean"] == data.battle_won.mean()
    assert numbers["returns"].keys() >= {"mean", "std", "q25", "median", "q75"}
    assert numbers["metadata"].keys() == {item.name for item in fields(data.metadata)}
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert run("inspect", file) == 0 and "win" not in capsys.readouterr().err
    little = replace(make_dataset([2]), battle_won=None)  # one episode, no word about victories
    draw_dataset(tmp_path / "y.png", inspect(little))
    assert (tmp_path / "y.png").stat().st_size > 10_000


# ------------------------------------------------------------------------------ mix


def test_parts_of_a_mix_and_how_many_of_each():
    assert parse_part("a:b/c.h5:0.25") == (Path("a:b/c.h5"), 0.25)
    assert parse_part("x.h5:300") == (Path("x.h5"), 300)
    for wrong in ("x.h5", "x.h5:", ":0.5", "x.h5:-3", "x.h5:0", "x.h5:half", "x.h5:0.0"):
        with pytest.raises(UserError, match="expected PATH:SHARE"):
            parse_part(wrong)
    assert episode_counts([0.5, 0.5], [10, 4]) == [4, 4]
    assert episode_counts([0.9, 0.1], [90, 90]) == [90, 10]
    assert episode_counts([1 / 3, 1 / 3, 1 / 3], [9, 9, 9], 10) == [4, 3, 3]
    assert episode_counts([7, 2], [10, 4]) == [7, 2]
    for amounts, available, total, message in (
        ([0.5, 0.4], [9, 9], None, "add up to 0.9"),
        ([0.5, 3], [9, 9], None, "shares"),
        ([5, 5], [9, 4], None, "Part 2 has 4"),
        ([0.5, 0.5], [9, 4], 12, "Part 2 has 4"),
        ([5, 5], [9, 9], 3, "add up to 10"),
    ):
        with pytest.raises(UserError, match=message):
            episode_counts(amounts, available, total)


def test_a_mix_holds_episodes_of_both_and_none_twice(tmp_path, data, file):
    other = make_dataset(LENGTHS, seed=5, quality="expert")
    write_dataset(tmp_path / "expert.h5", other)
    parts = (f"{file}:0.6", f"{tmp_path / 'expert.h5'}:0.4")
    for name, seed in (("one.h5", 1), ("again.h5", 1), ("two.h5", 2)):
        options = ("--episodes", 5, "--seed", seed, "--quality", "mixed_60_40")
        assert run("mix", *parts, tmp_path / name, *options) == 0
    one, again, two = (load_dataset(tmp_path / f"{n}.h5") for n in ("one", "again", "two"))
    assert one.metadata.content_hash == again.metadata.content_hash != two.metadata.content_hash
    assert one.metadata.quality == "mixed_60_40" and "seed 1" in one.metadata.source
    assert len(places(one, data)) == 3 and len(places(one, other)) == 2
    assert one.battle_won is not None and len(one) == 5


def places(part: OfflineDataset, whole: OfflineDataset) -> list[int]:
    """The episodes of `whole` that `part` has, by their first states; none twice."""
    first = {whole.arrays["state"][row].tobytes(): e for e, row in enumerate(whole.offsets[:-1])}
    keys = [part.arrays["state"][row].tobytes() for row in part.offsets[:-1]]
    found = [first[key] for key in keys if key in first]
    assert len(found) == len(set(found))
    for e, key in enumerate(keys):
        if key in first:
            rows, theirs = part.rows_of([e]), whole.rows_of([first[key]])
            for name in FIELDS:
                np.testing.assert_array_equal(part.arrays[name][rows], whole.arrays[name][theirs])
    return found


def test_maps_do_not_mix(capsys, tmp_path, file):
    write_dataset(tmp_path / "other.h5", make_dataset(map_name="3m"))
    error = refused(capsys, "mix", f"{file}:2", f"{tmp_path / 'other.h5'}:2", tmp_path / "x.h5")
    assert "map_name '2s3z' and '3m'" in error and not (tmp_path / "x.h5").exists()


def test_rewards_do_not_mix(capsys, tmp_path, data):
    """Of one map, collected under other settings of the reward."""
    parts = []
    for share in (0.5, 0.1):
        facts = replace(data.metadata, env_args=json.dumps({"local_ratio": share, "seed": share}))
        parts.append(f"{tmp_path / f'{share}.h5'}:2")
        write_dataset(tmp_path / f"{share}.h5", replace(data, metadata=facts))
    error = refused(capsys, "mix", *parts, tmp_path / "x.h5")
    assert "env_args.local_ratio was 0.5 and is 0.1" in error and "seed was" not in error
    assert not (tmp_path / "x.h5").exists()


# ------------------------------------------------------------------------------ subsample, split


def test_a_run_learns_from_what_it_is_told_to_keep(data):
    """dataset.keep: by hand, and one error where there is nothing of the kind."""
    assert keep_episodes(data, "all", 0.5) is data
    won = keep_episodes(data, "won", 0.5)
    assert places(won, data) == np.flatnonzero(data.battle_won).tolist()
    best = keep_episodes(data, "best", 0.3)
    order = np.argsort(data.episode_returns(), kind="stable")
    assert places(best, data) == sorted(order[-3:].tolist())
    for without in (None, np.zeros(10, dtype=np.uint8)):
        with pytest.raises(DatasetError, match=r"dataset\.keep=won"):
            keep_episodes(replace(data, battle_won=without), "won", 0.5)


def test_choices(data):
    returns = data.episode_returns()
    order = np.argsort(returns)
    assert set(choose(data, Choice(quantiles=(0.0, 0.3)))) == set(order[:3])
    quarters = [choose(data, Choice(quantiles=(q / 4, (q + 1) / 4))) for q in range(4)]
    assert sorted(np.concatenate(quarters)) == list(range(10))
    middle = float(np.median(returns))
    chosen = choose(data, Choice(returns=(middle, 99)))
    np.testing.assert_array_equal(chosen, np.flatnonzero(returns >= middle))
    won = choose(data, Choice(won=True))
    assert data.battle_won[won].all() and len(won) == data.battle_won.sum()
    some = choose(data, Choice(episodes=4, seed=3))
    assert len(set(some.tolist())) == 4 and (np.diff(some) > 0).all()
    assert not np.array_equal(some, choose(data, Choice(episodes=4, seed=4)))
    silent = replace(data, battle_won=None)
    for of, wrong, message in (
        (data, Choice(returns=(98, 99)), "No episode fits"),
        (data, Choice(quantiles=(0.5, 0.2)), "LOW < HIGH"),
        (data, Choice(episodes=11), "expected 1 to 10"),
        (silent, Choice(won=True), "does not say who won"),
    ):
        with pytest.raises(UserError, match=message):
            choose(of, wrong)


def test_subsample_and_split_share_nothing_and_lose_nothing(tmp_path, data, file):
    target, paths = tmp_path / "some.h5", (tmp_path / "train.h5", tmp_path / "held_out.h5")
    assert run("subsample", file, target, "--episodes", 4, "--seed", 3, "--quality", "few") == 0
    read = load_dataset(target)
    assert places(read, data) == choose(data, Choice(episodes=4, seed=3)).tolist()
    assert read.metadata.quality == "few" and "4 of 10 episodes" in read.metadata.source
    assert read.metadata.episode_limit == LIMIT
    assert run("split", file, *paths, "--held-out", 0.3) == 0
    training, held_out = map(load_dataset, paths)
    assert (len(training), len(held_out)) == (7, 3)
    assert sorted(places(training, data) + places(held_out, data)) == list(range(10))


def test_split_writes_both_or_none(capsys, tmp_path, file, monkeypatch):
    a, b = tmp_path / "a.h5", tmp_path / "b.h5"
    assert "two names" in refused(capsys, "split", file, a, a)
    assert "a share between 0 and 1" in refused(capsys, "split", file, a, b, "--held-out", 1)
    finish = canonical_writer.CanonicalWriter._finish

    def second_fails(writer):
        if writer.path == b:
            raise DatasetError("full")
        finish(writer)

    monkeypatch.setattr(canonical_writer.CanonicalWriter, "_finish", second_fails)
    assert "full" in refused(capsys, "split", file, a, b)
    assert os.listdir(tmp_path) == ["medium.h5"]


def test_parts_are_written_as_canonical_files(capsys, tmp_path, file):
    for words in (("mix", f"{file}:3"), ("subsample", file), ("split", file, tmp_path / "y.h5")):
        assert "ends with .h5" in refused(capsys, *words, tmp_path / "x.vlt")


# ------------------------------------------------------------------------------ list, collect, help


def test_list(capsys, tmp_path, data):
    (tmp_path / "smax").mkdir()
    write_dataset(tmp_path / "smax" / "2s3z_medium.h5", data)
    (tmp_path / "smax" / "broken.h5").write_text("hello")
    assert run("list", "--datasets-dir", tmp_path) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "smax" / "2s3z_medium.h5") in out
    known = {(k.env, k.map_name, k.quality): k for k in known_datasets(tmp_path)}
    assert known["smax", "2s3z", "medium"].here and known["smax", "2s3z", "medium"].size
    assert "damaged" in known["smax", "broken", ""].source
    assert "main.py" in known["smax", "2s3z", "expert"].how
    assert "overcooked_offline" in known["overcooked", "coord_ring", "conventions"].how
    assert known["sc2", "5m_vs_6m", "medium"].how.endswith("download cfcql/5m_vs_6m")


def test_collect_hands_over_to_main(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("inspo.main.main", lambda words: seen.append(words) or 0)
    words = ["--config=qmix", "with", "collect.n_episodes=5", "quality=x"]
    assert run("collect", *words) == 0 and seen == [words]
    assert "collect.n_episodes" in refused(capsys, "collect", "--config=qmix")


# ------------------------------------------------------------------------------ odd content


def test_convert_says_what_it_has_cast(capsys, tmp_path, data):
    batch = padded(data)
    write_cfcql(tmp_path / "x.h5", batch | {"reward": batch["reward"].astype(float)})
    assert run("convert", tmp_path / "x.h5", tmp_path / "y.h5") == 0
    assert (
        "key 'reward' was cast from float64 to float32, to the nearest value"
        in capsys.readouterr().out
    )
    assert same(load_dataset(tmp_path / "y.h5"), data)


@pytest.mark.parametrize("command", ["validate", "inspect", "list"])
def test_escape_sequences_never_reach_the_terminal(capsys, tmp_path, data, command):
    evil = "\x1b[2J\x9b31m\rhidden"
    path = tmp_path / "smax" / "2s3z_medium.h5"
    facts = replace(data.metadata, quality=evil, source=evil, map_name=evil, notes=(evil,))
    write_dataset(path, replace(data, metadata=facts))
    with h5py.File(path, "r+") as stored:
        stored[evil] = 1
        if command == "validate":
            stored.attrs["env"] = evil
            stored.attrs["format"] = evil
    run(command, *(["--datasets-dir", tmp_path] if command == "list" else [path]))
    out = capsys.readouterr()
    assert not set(out.out + out.err) & set("\x1b\x9b\r")
