"""report.py on synthetic records: what counts, what is named, and the numbers."""

import csv
import itertools
import json
import math
import os
import random

import numpy as np
import pytest

from inspo import report
from inspo.experiments.aggregates import aggregate, curves_of
from inspo.experiments.pages import cell_text, marl_eval
from inspo.experiments.records import read_records
from inspo.experiments.selection import select_runs
from inspo.utils.errors import ConfigError, UserError
from tests.records import N_EPISODES, WON, edit, write_grid, write_record, write_seeds

WIN_RATE, TASK = "test_battle_won_mean", "2s3z_medium"


def selected(root, **options):
    return select_runs(read_records([root]), **options)


def written(root, out, *options):
    """The folder of the report, made by the command."""
    assert report.main([str(root), "--out", str(out), "--reps", "20", *options]) == 0
    return out


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def names(items):
    return [item.key for item in items]


def said(found, *words):
    """The one note that has all the words."""
    (note,) = [note for note in found.notes if all(word in note for word in words)]
    return note


# What counts


def test_cells_have_means_and_tests_by_hand(tmp_path):
    from scipy.stats import ttest_ind

    write_grid(tmp_path)
    found = selected(tmp_path)
    assert found.metric == WIN_RATE and found.share and not found.notes
    assert names(found.methods) == ["BC", "OMIGA", "InSPO"]  # the paper's order
    assert names(found.tasks) == [TASK, "2s3z_mixed"]
    cell = found.entries["OMIGA", "2s3z_mixed"]
    values = [3 / 8, 6 / 8, 5 / 8, 6 / 8]
    assert cell.mean == pytest.approx(5 / 8)
    assert cell.std == pytest.approx(math.sqrt(sum((v - 5 / 8) ** 2 for v in values) / 3))
    assert [entry.best for entry in found.column(found.tasks[1])] == [False, False, True]
    top = [v / 8 for v in WON["inspo"]["mixed"]]
    assert cell.p == pytest.approx(ttest_ind(values, top, equal_var=False).pvalue)
    assert cell.as_good == (cell.p >= 0.05)
    assert not found.entries["BC", "2s3z_mixed"].as_good
    assert set(found.runs.reason) == {""}


def test_unfinished_and_missing_seeds_are_named_and_not_compared(tmp_path):
    write_grid(tmp_path, without=[("bc", "medium", 2), ("inspo", "medium", 3)])
    write_record(tmp_path, "inspo", seed=3, status="FAILED")
    write_record(tmp_path, "inspo", seed=3, status="INTERRUPTED", number=2)
    found = selected(tmp_path)
    note = said(found, "InSPO on 2s3z_medium", "seed 3 is not finished")
    assert "FAILED: sacred/inspo/2s3z_medium_3/1" in note and "INTERRUPTED" in note
    assert str(tmp_path) not in note
    assert "3 of 4 seeds" in said(found, "BC on 2s3z_medium")
    cell = found.entries["InSPO", TASK]
    assert cell.missing == [3] and cell.mean == pytest.approx(6 / 8)  # of the three
    assert not cell.best and not found.entries["OMIGA", TASK].best  # nothing to compare
    assert found.entries["InSPO", "2s3z_mixed"].best
    assert cell_text(cell, 2) == "0.75 ± 0.12 (3 of 4 seeds)"
    assert sorted(set(found.runs.reason)) == ["", "not finished"]
    enough = selected(tmp_path, min_seeds=3)
    assert cell_text(enough.entries["InSPO", TASK], 2) == "**0.75 ± 0.12** (3 of 4 seeds)"


def test_a_seed_that_no_method_finished_is_expected_all_the_same(tmp_path):
    for name in ("bc", "inspo"):
        write_seeds(tmp_path, name, [4, 4])
        write_record(tmp_path, name, seed=2, status="RUNNING")
    found = selected(tmp_path)
    assert all(cell.missing == [2] and not cell.complete for cell in found.entries.values())


@pytest.mark.parametrize("status", ["INTERRUPTED", "COMPLETED"])
def test_of_several_runs_of_a_seed_the_newest_finished_one_counts(tmp_path, status):
    """That a run was resumed is nothing to name; that two are finished is."""
    write_record(tmp_path, status=status, won=1)
    write_record(tmp_path, number=2, won=5, resume="models/x")
    write_record(tmp_path, seed=1, won=3)
    found = selected(tmp_path)
    assert found.entries["BC", TASK].values == {0: 5 / 8, 1: 3 / 8}
    if status == "COMPLETED":
        assert "seeds 0;" in said(found, "several finished runs")
        assert sorted(found.runs.reason) == ["", "", "older"]
    else:
        assert not found.notes


def test_runs_of_different_configurations_are_not_averaged(tmp_path):
    write_seeds(tmp_path, "bc", [2, 2], lr=0.1)
    write_seeds(tmp_path, "bc", [6, 6], lr=0.5, number=2, torch_threads=2)
    found = selected(tmp_path)
    cell = found.entries["BC", TASK]
    assert not cell.averaged and math.isnan(cell.mean)
    note = said(found, "not averaged", "lr is 0.1 and 0.5", "--group-by name label lr")
    assert "torch_threads" not in note and cell_text(cell, 2) == "unequal runs"
    apart = selected(tmp_path, group_by=["name", "lr"])
    assert names(apart.methods) == ["BC (lr=0.1)", "BC (lr=0.5)"] and not apart.notes
    assert [apart.entries[m, TASK].mean for m in names(apart.methods)] == [2 / 8, 6 / 8]


def test_methods_tested_otherwise_are_shown_but_not_compared(tmp_path):
    game = "StarCraft II {}, SMAC".format
    write_seeds(tmp_path, "bc", [0, 1, 2], facts={"simulator": game("4.10.0")})
    other = {"facts": {"simulator": game("4.6.2")}, "test_greedy": False, "t_max": 300}
    write_seeds(tmp_path, "inspo", [5, 6, 7], **other)
    found = selected(tmp_path)
    note = said(found, "methods not compared")
    assert f"({game('4.10.0')} and {game('4.6.2')})" in note and "test_greedy" in note
    assert "BC 100, InSPO 300" in said(found, "different budgets")
    assert not any(cell.best for cell in found.entries.values())
    assert found.entries["InSPO", TASK].averaged


PAYOFF = {"map_name": "2s3z", "payoff": [[5, 0], [0, 5]]}


@pytest.mark.parametrize(
    ("before", "changes", "words"),
    [
        ({}, {"t_max": 200}, "t_max"),
        ({}, {"env_args": {"map_name": "2s3z", "walls": 3}}, None),  # unknown to the other version
        ({}, {"local_results_path": "/elsewhere", "torch_threads": 4}, None),
        ({}, {"facts": {"dataset": {"hash": "xyz"}}}, "the dataset's hash is abc and xyz"),
        ({}, {"facts": {"dataset": {"hash": None}, "simulator": None}}, None),  # not recorded
        ({}, {"dataset": {"path": "x/d.h5"}}, None),
        ({"env_args": PAYOFF}, {"env_args": PAYOFF | {"payoff": None}}, "None and [[5, 0], [0, 5]"),
        ({"behaviour": {"lr": 0.1}}, {"behaviour": {"lr": 1}}, "name label behaviour.lr tells"),
    ],
)
def test_what_makes_runs_of_a_cell_unequal(tmp_path, before, changes, words):
    write_record(tmp_path, seed=0, **before)
    write_record(tmp_path, seed=1, **changes)
    found = selected(tmp_path)
    assert words in said(found, "not averaged") if words else not found.notes


def test_tasks_on_which_methods_are_not_compared_are_not_aggregated_either(tmp_path):
    write_grid(tmp_path)
    for seed in range(4):
        folder = tmp_path / f"sacred/inspo/2s3z_medium_{seed}/1"
        edit(folder, lambda run: run["result"]["dataset"].update(hash="x" * 64))
    found = selected(tmp_path)
    assert list(found.incomparable) == [TASK]
    result = aggregate(found, "auto", 20)
    assert result.tasks == ["2s3z_mixed"]
    (note,) = result.notes
    assert "2s3z_medium, the dataset's hash (abc and xxxxxxxxxxxx)" in note
    assert list(marl_eval(found, result)["smax"]) == ["2s3z_mixed"]


def test_an_unequal_cell_hides_no_difference_between_the_others_and_makes_none(tmp_path):
    for seed in range(3):
        write_record(tmp_path, "omiga", seed=seed, won=seed, test_greedy=seed == 0)
    write_seeds(tmp_path, "bc", [0, 1, 2])
    folders = write_seeds(tmp_path, "inspo", [5, 6, 7])
    alike = selected(tmp_path)
    assert not alike.incomparable and alike.entries["InSPO", TASK].best
    for folder in folders:
        edit(folder, lambda run: run["result"]["dataset"].update(hash="x" * 64))
    differing = selected(tmp_path)
    said(differing, "2s3z_medium: methods not compared", "the dataset's hash")
    assert not any(cell.best for cell in differing.entries.values())


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (None, "null"), ("high", "high")])
def test_a_final_test_without_a_number_counts_as_missing_and_is_named(tmp_path, value, word):
    write_grid(tmp_path, without=[("inspo", "medium", 0)])
    write_record(tmp_path, "inspo", final={WIN_RATE: value})
    found = selected(tmp_path)
    note = said(found, "InSPO on 2s3z_medium", f"seed 0: {WIN_RATE} is {word} ")
    assert "sacred/inspo/2s3z_medium_0/1" in note
    cell = found.entries["InSPO", TASK]
    assert cell.missing == [0] and cell.mean == pytest.approx(19 / 24) and not cell.best
    assert found.share and f"{WIN_RATE} is {word}" in set(found.runs.reason)
    result = aggregate(found, "auto", 20)
    assert result.tasks == ["2s3z_mixed"] and np.isfinite(result.table["InSPO"]["IQM"]).all()
    # A second run of the seed takes its place, and the first is named all the same.
    write_record(tmp_path, "inspo", won=6, number=2)
    again = selected(tmp_path)
    assert again.entries["InSPO", TASK].values[0] == 6 / 8
    assert said(again, f"seed 0: {WIN_RATE} is {word} ") and len(again.notes) == 1


def test_one_seed_is_neither_tested_nor_beaten(tmp_path):
    write_seeds(tmp_path, "bc", [2, 3, 4])
    write_record(tmp_path, "inspo", won=8)
    write_seeds(tmp_path, "omiga", [4, 5, 6])
    found = selected(tmp_path, min_seeds=1)  # the others are tested among themselves
    assert [c.best for c in found.column(found.tasks[0])] == [False, True, False]
    cell = found.entries["InSPO", TASK]
    assert math.isnan(cell.p)
    assert cell_text(cell, 2) == "1.00 (1 of 3 seeds; not tested: one seed)"
    note = said(found, "InSPO on 2s3z_medium", "missing: 1, 2")
    assert "enough (--min-seeds 1); not tested: one seed" in note


def test_one_seed_has_no_interval_and_two_simulators_are_two_tasks(tmp_path):
    write_record(tmp_path / "a", "bc", won=2)
    write_record(tmp_path / "a", "inspo", won=8, label=r"$\bad$")
    write_record(tmp_path / "b", env="sc2")
    assert names(selected(tmp_path).tasks) == ["sc2 2s3z_medium", "smax 2s3z_medium"]
    out = written(tmp_path / "a", tmp_path / "out", "--title", r"$\bad$")
    page = (out / "report.md").read_text()
    assert page.count("(not tested: one seed)") == 2 and "**" not in page
    for name in ("cells", "curves"):
        rows = rows_of(out / f"{name}.csv")
        assert rows and all(r["mean"] and r["low"] == r["high"] == "" for r in rows)


# What cannot be read


def test_metrics_and_groups_by_name(tmp_path):
    raw = {"returns": [0.0, 1.0], "lengths": [1, 1]}
    write_seeds(tmp_path, "bc", [4, 4], facts=raw)
    for word in ("battle_won", WIN_RATE):
        assert selected(tmp_path, metric=word).metric == WIN_RATE
    assert not selected(tmp_path, metric="return").share  # though all are 0 or 1
    with pytest.raises(ConfigError, match=r"--metric.*'wins'.*Known: test_battle_won_mean, "):
        selected(tmp_path, metric="wins")
    with pytest.raises(ConfigError, match=r"--group-by.*'seeed'.*Did you mean 'seed'"):
        selected(tmp_path, group_by=["name", "seeed"])
    with pytest.raises(ConfigError, match="never mixed"):
        selected(tmp_path, group_by=["label"])


def test_links_are_followed_once(tmp_path):
    write_record(tmp_path / "real" / "a")
    (tmp_path / "real" / "a" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "shown").symlink_to(tmp_path / "real")
    for roots in ([tmp_path / "shown"], [tmp_path / "shown", tmp_path / "real"]):
        records = read_records(roots)
        assert records.table.seed.tolist() == [0] and not records.unreadable
        assert not [run for run in records.table.run if ".." in records.place(run)]


def test_folders_without_records(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: expected a folder"):
        read_records([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"run.json.*found 0"):
        read_records([tmp_path])
    write_record(tmp_path, status="RUNNING")
    with pytest.raises(UserError, match=r"none of the 1 runs.*RUNNING"):
        selected(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run", {"t_env": 1}),
        ("run", {"t_env": 1, "updates": 2, "final": {}, "tests": [7, 8]}),
        ("config", {"name": "x", "seed": 1}),
    ],
)
def test_another_versions_record_is_one_clear_error(tmp_path, file, content):
    write_record(tmp_path)
    folder = write_record(tmp_path, seed=1, result=content if file == "run" else None)
    if file == "config":
        (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="another version") as error:
        read_records([tmp_path])
    assert str(folder) in str(error.value) and f"{file}.json: " in str(error.value)


def test_records_cut_by_a_kill_and_evaluations_are_set_aside(tmp_path):
    _, _, folder = write_seeds(tmp_path, "bc", [4, 4, 4])
    (folder / "run.json").write_text('{"status": "RUNN')
    write_record(tmp_path, seed=3, evaluate=True, result={"returns": [1.0]})
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "run.json").write_text("{}")  # no record lies there
    records = read_records([tmp_path, tmp_path / "sacred"])  # overlapping folders: once each
    assert len(records.table) == 2 and records.others == 1
    assert "2s3z_medium_2" in said(select_runs(records), "unreadable")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("info", "[]", "info.json is list"),
        ("run", "[" * 100_000, "RecursionError"),
        ("run", "\udcff", "UnicodeDecodeError"),
        ("config", {"dataset": None}, "config.json: dataset is null, expected dict"),
        ("config", {"dataset": {"path": 5}}, "dataset.path is int, expected str or null"),
        ("config", {"seed": "0"}, "seed is str, expected int"),
        ("run", {"status": []}, "status is list"),
        ("result", {"tests": 5}, "result.tests is int"),
        ("result", {"returns": None, "battle_won": ["a"]}, None),  # as good as none
    ],
)
def test_odd_records_are_named_and_the_others_read(tmp_path, capsys, file, change, words):
    *_, folder = write_seeds(tmp_path, "bc", [4, 4, 4])
    if isinstance(change, str):
        (folder / f"{file}.json").write_text(change, errors="surrogateescape")
    elif file == "result":
        edit(folder, lambda run: run["result"].update(change))
    else:
        edit(folder, lambda content: content.update(change), file)
    written(tmp_path, tmp_path / "out")
    if words:
        note = said(selected(tmp_path), "unreadable", "2s3z_medium_2/1")
        assert words in note and note in capsys.readouterr().out


def test_what_cannot_be_listed_is_named(tmp_path, monkeypatch):
    _, folder = (write_record(tmp_path, seed=seed) for seed in (0, 1))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    listed = os.scandir

    def scandir(path):
        if str(path) == str(folder.parent):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    records = read_records([tmp_path])
    denied = "sacred/bc/2s3z_medium_1 (PermissionError)"
    assert len(records.table) == 1
    assert records.unreadable == ["gone (a link to nothing)", denied]
    with pytest.raises(UserError, match=r"unreadable: \. \(PermissionError\)"):
        read_records([folder.parent])


# The numbers


def iqm_by_hand(values):
    """The mean of the middle half: a quarter of the values, rounded down, cut from each end."""
    values = sorted(values)
    cut = len(values) // 4
    return np.mean(values[cut : len(values) - cut])


def bootstrap_by_hand(matrix, statistic, reps, seed=1):
    """Percentile interval; the runs of each task are drawn again among themselves."""
    draw = random.Random(seed)
    found = sorted(
        statistic([draw.choices(column, k=len(column)) for column in zip(*matrix)])
        for _ in range(reps)
    )
    return found[int(0.025 * reps)], found[int(0.975 * reps)]


def test_interquartile_means_and_their_intervals(tmp_path):
    write_grid(tmp_path)
    found, before = selected(tmp_path), np.random.get_state()[1].tolist()
    result = aggregate(found, "auto", 300)
    assert list(result.scores) == ["BC", "OMIGA", "InSPO"] and not result.notes
    assert aggregate(found, "auto", 300).table == result.table  # the same runs, the same intervals
    assert np.random.get_state()[1].tolist() == before
    for method, key in (("BC", "bc"), ("InSPO", "inspo")):
        columns = [[v / 8 for v in WON[key][task]] for task in ("medium", "mixed")]
        flat = list(itertools.chain(*columns))
        point, low, high = result.table[method]["IQM"]
        assert point == pytest.approx(iqm_by_hand(flat)) and low < point < high
        rows = list(zip(*columns))
        ends = bootstrap_by_hand(rows, lambda c: iqm_by_hand(itertools.chain(*c)), 1000)
        assert (low, high) == pytest.approx(ends, abs=0.05)
        assert result.table[method]["mean"][0] == pytest.approx(sum(flat) / len(flat))
        assert result.table[method]["optimality gap"][0] == pytest.approx(1 - sum(flat) / len(flat))
        profile, _ = result.profiles[method]
        for place in (0, 40, 100):
            above = sum(v > result.thresholds[place] for v in flat) / len(flat)
            assert profile[place] == pytest.approx(above)


def test_probability_of_improvement_counts_pairs(tmp_path):
    write_grid(tmp_path)
    result = aggregate(selected(tmp_path), "auto", 300)
    wins = []
    for task in ("medium", "mixed"):
        pairs = list(itertools.product(WON["omiga"][task], WON["bc"][task]))
        wins.append(sum(1.0 * (a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    point, low, high = result.improvement["OMIGA", "BC"]
    assert point == pytest.approx(sum(wins) / 2) and low <= point <= high and low < high
    assert result.improvement["BC", "OMIGA"] == pytest.approx((1 - point, 1 - high, 1 - low))


def test_returns_are_scaled_by_task_and_what_is_incomplete_is_left_out(tmp_path):
    write_grid(tmp_path, without=[("inspo", "mixed", 0)])
    write_record(tmp_path, "icq", "medium", 0)  # one task only
    for name in WON:
        write_seeds(tmp_path, name, [4] * 4, quality="flat")
    found = selected(tmp_path, metric="return_mean")
    result = aggregate(found, "auto", 50)
    assert result.tasks == ["2s3z_medium"] and result.limits == {"2s3z_medium": (7.5, 17.5)}
    assert result.scores["BC"][:, 0] == pytest.approx([0.0, 0.25, 0.25, 0.5])
    notes = " | ".join(result.notes)
    assert "no runs on some task: ICQ" in notes
    assert "averaged values of all seeds there: 2s3z_mixed" in notes
    assert "same value: 2s3z_flat" in notes
    plain = aggregate(found, "none", 50)
    assert plain.scores["BC"][:, 1] == pytest.approx([7.5, 10, 10, 12.5]) and not plain.limits
    assert "optimality gap" not in plain.table["BC"]


def test_learning_curves_are_over_updates_with_intervals(tmp_path):
    write_record(tmp_path, seed=0, won=2, steps=(0, 40, 80))
    folder = write_record(tmp_path, seed=1, won=6, steps=(0, 80))
    found = selected(tmp_path)
    band = curves_of(found, 500)["2s3z_medium"]["BC"]
    assert band.updates == pytest.approx([0, 8, 10])  # 10 updates in 100 steps
    shares = np.array([2 / 8, 6 / 8])
    assert band.mean == pytest.approx([0, (shares * 0.4).mean(), shares.mean()])
    assert band.low[-1] == pytest.approx(2 / 8) and band.high[-1] == pytest.approx(6 / 8)
    # A test without a number is left out and named; the last may be Sacred's reference to `final`.
    last = {"py/id": 16}
    edit(folder, lambda run: run["result"]["tests"][1].update({WIN_RATE: None}))
    edit(folder, lambda run: run["result"]["tests"].__setitem__(-1, last))
    found = selected(tmp_path)
    assert "in 1 of its tests" in said(found, "seed 1")
    band = curves_of(found, 20)[TASK]["BC"]
    assert band.updates[-1] == 10 and np.isfinite(band.mean).all()


@pytest.mark.parametrize("metric", ["battle_won", "return"])
def test_the_interval_of_one_seed_is_that_of_its_tests_episodes(tmp_path, metric):
    folder = write_record(tmp_path, won=4, steps=(0, 50), final={"test_episodes": 400})
    edit(folder, lambda run: run["result"]["tests"][1].update(test_episodes=100))
    band = curves_of(selected(tmp_path, metric=metric), 20)[TASK]["BC"]
    half = (band.high - band.low) / 2
    assert np.isnan(half[0])  # of before the number of episodes was recorded
    # Shares of .125 and .5, by Wilson within 3 %; the mean 10 with a deviation of 1.
    expected = {"battle_won": [(0.125 * 0.875 / 100) ** 0.5, 0.025], "return": [np.nan, 0.05]}
    assert half[1:] / 1.96 == pytest.approx(expected[metric], rel=0.03, nan_ok=True)


# The files


def test_the_whole_report(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_grid(runs, without=[("bc", "medium", 3)])
    write_record(runs, "bc", "medium", 3, status="FAILED")
    options = ("--title", "All of it", "--min-seeds", "3")
    written(runs, out, *options)
    page = (out / "report.md").read_text()
    assert page.startswith("# All of it") and str(tmp_path) not in page
    assert "23 of 24 training runs" in page
    assert "seed 3 is not finished (FAILED: sacred/bc/2s3z_medium_3/1)" in page
    assert "seed 3 is not finished" in capsys.readouterr().out
    assert "**0.91 ± 0.12**" in page and "0.62 ± 0.18" in page
    assert "first 3 alone" in page and "Probability of improvement" in page
    for name in ("learning_curves", "performance_profiles"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
        assert f"({name}.png)" in page
    rows = rows_of(out / "runs.csv")
    unfinished = [row["record"] for row in rows if row["counts"] == "not finished"]
    assert len(rows) == 24 and unfinished == ["sacred/bc/2s3z_medium_3/1"]
    cells = {(row["method"], row["task"]): row for row in rows_of(out / "cells.csv")}
    assert float(cells["InSPO", "2s3z_mixed"]["mean"]) == pytest.approx(29 / 32)
    assert cells["BC", TASK]["missing_seeds"] == "3"
    pdf = (out / "learning_curves.pdf").read_bytes()
    written(runs, out, *options)
    assert (out / "learning_curves.pdf").read_bytes() == pdf  # same numbers, same file


def test_marl_evals_format(tmp_path):
    """environment -> task -> algorithm -> run -> step_K and absolute_metrics, all runs alike."""
    write_seeds(tmp_path, "bc", [3, 3], steps=(0, 20, 40))
    write_seeds(tmp_path, "inspo", [5, 5], steps=(0, 50))
    content = json.loads((written(tmp_path, tmp_path / "out") / "marl_eval.json").read_text())
    runs = content["smax"][TASK]
    assert set(runs) == {"BC", "InSPO"} and set(runs["BC"]) == {"seed_0", "seed_1"}
    for method, steps in (("BC", [0, 40, 100]), ("InSPO", [0, 50, 100])):
        run = runs[method]["seed_1"]
        assert list(run) == ["step_0", "step_1", "step_2", "absolute_metrics"]
        assert [run[f"step_{k}"]["step_count"] for k in range(3)] == steps
        assert set(run["step_1"]) == {"step_count", "battle_won", "return"}
        assert all(len(run["step_1"][key]) == 1 for key in ("battle_won", "return"))
        assert len(run["absolute_metrics"]["return"]) == N_EPISODES
    assert sum(runs["BC"]["seed_0"]["absolute_metrics"]["battle_won"]) == 3


def test_a_report_leaves_no_files_of_an_earlier_one(tmp_path):
    write_grid(tmp_path / "many")
    write_record(tmp_path / "one")
    out = written(tmp_path / "many", tmp_path / "out")
    assert (out / "marl_eval.json").exists()
    (out / "mine.txt").write_text("kept")
    written(tmp_path / "one", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "cells.csv", "curves.csv", "learning_curves.pdf", "learning_curves.png", "mine.txt",
        "report.md", "runs.csv",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{root}", "--out", "~nosuchuser/x"], "'~nosuchuser/x' is not known"),
        (["{root}/none", "--out", "{root}/out"], "expected a folder with results, found none"),
        (["{root}", "--out", "{root}/out"], "aggregates.csv: Is a directory"),
    ],
)
def test_errors_are_one_line_and_status_2(tmp_path, capsys, words, message):
    write_record(tmp_path)
    (tmp_path / "out" / "aggregates.csv").mkdir(parents=True)  # it cannot be removed
    assert report.main([word.format(root=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
