"""Statistics, files and comparisons: methods on datasets, over seeds."""

import csv
import doctest
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from inspo.experiments import records, statistics, tables
from inspo.experiments.cells import Cell
from inspo.experiments.comparison import (
    cells_of,
    check_measured,
    compare,
    recorded_runs,
    to_markdown,
    write,
)
from inspo.experiments.entries import Comparison, Data, Method
from inspo.experiments.statistics import bootstrap, mean_std, normal_interval, welch_p, wilson
from inspo.utils.errors import UserError
from tests.records import made_run


@pytest.mark.parametrize("module", [statistics, tables])
def test_examples_in_docstrings(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0 and outcome.failed == 0


# Statistics


def test_welch_by_its_definition():
    from scipy.stats import t

    for a, b in (([1.0, 2.0, 4.0, 4.5], [3.0, 7.0, 8.0]), ([1.0, 2.0, 4.0], [2.5, 2.5, 2.501])):
        va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
        freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
        gap = abs(np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
        assert welch_p(a, b) == welch_p(b, a) == pytest.approx(2 * t.sf(gap, freedom))
    assert (welch_p([1, 1], [1, 1]), welch_p([1, 1], [2, 2])) == (1, 0)
    assert welch_p([1, 1, 1], [0.9, 1.0, 1.2]) > 0.05 and math.isnan(welch_p([1], [1, 2]))
    with warnings.catch_warnings(action="error"):  # exact returns are nearly identical
        assert welch_p([1 - 1e-15, 1, 1], [1, 1, 1 + 1e-15]) > 0
    assert mean_std([1, 2, 4]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    assert mean_std([5.0])[0] == 5 and math.isnan(mean_std([5.0])[1])


def test_wilson_solves_its_equation_and_works_at_the_ends():
    z = 1.959963984540054
    for won, n in ((3, 10), (160, 320), (319, 320)):
        for bound in wilson(won, n):  # |share - p| = z sqrt(p (1 - p) / n)
            expected = z * math.sqrt(bound * (1 - bound) / n)
            assert abs(won / n - bound) == pytest.approx(expected, rel=1e-6)
    assert wilson(0, 320)[0] == pytest.approx(0) and 0 < wilson(0, 320)[1] < 0.02
    assert wilson(320, 320)[1] == pytest.approx(1) and 0.98 < wilson(320, 320)[0] < 1


def test_bootstrap_is_near_the_normal_interval_and_repeats():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap(values)
    expected = normal_interval(values.mean(), values.std(ddof=1), len(values))
    assert (low, high) == pytest.approx(expected, abs=0.02)
    assert bootstrap(values) == (low, high)
    assert bootstrap([2.0, 2.0]) == (2.0, 2.0)


# Files


def test_what_is_published_names_no_path_of_this_machine():
    config = {"lr": 0.1, "datasets_dir": "/home/me/d", "dataset": {"path": "/home/me/my.h5"}}
    public = records.public_config(config | {"local_results_path": "/home/me/r", "resume": "/m"})
    assert public == {"lr": 0.1, "dataset": {"path": "my.h5"}}
    words = ["--config=bc", "with", "lr=0.1", "resume=/home/me/m", "local_results_path=/home/me"]
    assert records.public_command(words) == "./run.sh --config=bc with lr=0.1"


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tables.write_text(tmp_path / "sub" / "a.md", "one")
    tables.write_text(path, "two")
    assert path.read_text() == "two"

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"a\.md: No space left"):
        tables.write_text(path, "three")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.md"]


def test_json_and_csv_come_back(tmp_path):
    content = {"a": [1, 2.5], "b": {"c": [], "d": None, "e": "β"}, "n": math.nan, "l": [[1], []]}
    back = json.loads(tables.write_json(tmp_path / "x.json", content).read_text())
    assert back == {**content, "n": None}
    rows = [{"a": 1}, {"a": 2, "b": "x, y"}]
    with open(tables.write_csv(tmp_path / "x.csv", rows), encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": ""}, {"a": "2", "b": "x, y"}]


# Comparisons


DATA = Data("xor_b", "XOR (b)", "matrix_offline", {"map_name": "xor"}, {"bc": (0.23, 0.01)}, -1.0)
METHODS = [
    Method("bc", "bc", "BC"),
    Method("inspo", "inspo", "InSPO"),
    Method("variant", "inspo", "Variant", {"lr": 1.0}, "another rate.", only=("xor_b",)),
]


def comparison(**changes):
    settings = dict(
        name="table", title="T", caption="C", datasets=[DATA], methods=METHODS,
        seeds=range(3), metric="test_expected_return", unit="return", data_row=True,
    )  # fmt: skip
    return Comparison(**(settings | changes))


def results(**values):
    return {
        ("xor_b", method, seed): made_run(seed, value)
        for method, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
        if value is not None
    }


ALL = {"bc": [0.0, 0.1, 0.2], "inspo": [1.0, 0.9, 1.1], "variant": [0.8, 0.7, 1.3]}


def test_cells_carry_the_variant_and_the_seed():
    elsewhere = Data("other", "o", "matrix_offline", {})
    cells = cells_of(comparison(datasets=[DATA, elsewhere]))
    assert len(cells) == 3 * (3 + 2)
    cell = cells["xor_b", "variant", 2]
    assert (cell.id, cell.algorithm) == ("xor_b/variant/seed2", "inspo")
    assert cell.overrides == {"map_name": "xor", "lr": 1.0, "seed": 2}
    assert ("other", "variant", 0) not in cells


def test_best_and_asterisk():
    bc, inspo, variant = compare(comparison(), results(**ALL))
    assert inspo.best and not (bc.best or variant.best)
    assert variant.as_good and not bc.as_good and not inspo.as_good
    assert bc.p == pytest.approx(welch_p(ALL["bc"], ALL["inspo"]))
    same = compare(comparison(), results(bc=[1, 1, 1], inspo=[1, 1, 1], variant=[0.999, 1, 1]))
    assert [entry.best for entry in same] == [True, True, True]  # all that print the same


def test_an_incomplete_mean_is_named_and_not_compared():
    part = results(bc=[0.0, 0.1, 0.2], inspo=[9.0, None, 9.0])
    bc, inspo, variant = compare(comparison(), part)
    assert bc.best and not inspo.best and inspo.missing == [1]
    assert variant.missing == [0, 1, 2]
    text = to_markdown(comparison(), part)
    assert "9.00 ± 0.00 (only 2 of 3 seeds)" in text
    assert "InSPO on XOR (b) (seeds 1)" in text
    assert "Variant on XOR (b) (all seeds)" in text


def test_the_files_of_a_comparison(tmp_path):
    paths = write(comparison(), results(**ALL), tmp_path)
    assert [p.name for p in paths] == ["table.md", "table.csv", "table.json", "table.png"]
    text = paths[0].read_text()
    for piece in ("**1.00 ± 0.10**", "0.93 ± 0.32\\*", "0.23 ± 0.01", "−1.00", "Variant †",
                  "another rate.", "`0123456789`", "a CPU"):  # fmt: skip
        assert piece in text
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert len(rows) == 9 and rows[0]["paper_mean"] == "0.23" and rows[3]["best"] == "True"
    record = json.loads(paths[2].read_text())
    run = record["entries"][0]["runs"][0]
    assert run["raw"]["returns"] == [1, 2.5] and run["git_commit"] and run["config"]["lr"] == 0.1
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in write(comparison(), {}, tmp_path)][-1] == "table.json"


def test_shares_have_wilsons_interval_and_other_data_are_named():
    runs = {
        ("xor_b", "bc", seed): made_run(seed, 0.5, dataset_hash=f"hash{seed}") for seed in range(3)
    }
    shares = comparison(
        metric="test_battle_won_mean", share=True, with_paper=False, digits=3, methods=METHODS[:1]
    )
    text = to_markdown(shares, runs)
    low, high = wilson(3, 6)
    assert f"**0.500 ± 0.000** [{low:.3f}, {high:.3f}]" in text
    assert "| the data |" in text and "0.400" in text
    assert "not made on the same data" in text


def test_a_single_seed_is_not_tested():
    made = comparison(seeds=range(1), methods=METHODS[:2])
    text = to_markdown(made, results(bc=[1.0], inspo=[2.0]))
    assert "**2.00**" in text and "1.00\\*" not in text
    assert "nothing is tested" in text
    both = comparison(seeds=range(2), methods=METHODS[:2])
    assert "nothing is tested" not in to_markdown(both, results(bc=[1.0, 2.0], inspo=[2.0, 1.0]))


@pytest.mark.parametrize("down", [False, True], ids=["methods_down", "datasets_down"])
def test_both_layouts_of_the_table(down):
    other = Data("other", "Other", "matrix_offline", {}, {"inspo": (5.0, math.nan)}, 2.0)
    made = comparison(datasets=[DATA, other], methods=METHODS[:2], datasets_down=down,
                      published_average={"bc": 0.5})  # fmt: skip
    lines = to_markdown(made, results(bc=[0.0] * 3, inspo=[1.0] * 3)).splitlines()
    found = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    best = "**1.00 ± 0.00**"
    if down:
        assert found[0] == ["", "the data", "BC, paper", "ours", "InSPO, paper", "ours"]
        assert found[2] == ["XOR (b)", "0.50", "0.23 ± 0.01", "0.00 ± 0.00", "–", best]
        assert found[3] == ["Other", "–", "–", "missing", "5.00", "missing"]
        assert found[4] == ["average", "", "0.50", "–", "–", "–"]
    else:
        assert found[0] == ["", "XOR (b), paper", "ours", "Other, paper", "ours"]
        assert found[2] == ["the data", "−1.00", "0.50", "2.00", "–"]
        assert found[4] == ["InSPO", "–", best, "5.00", "missing"]


def test_a_run_without_the_number_of_the_table_is_refused():
    check_measured(comparison(), [made_run(0, 1.0)])
    for value in (None, "high", math.nan, math.inf):
        with pytest.raises(UserError, match=r"r: expected a number under test_expected_return"):
            check_measured(comparison(), [made_run(0, 1.0), made_run(1, value)])


# What a table's file holds


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A comparison on the matrix game XOR, its cells, and the folder where it was written."""
    folder = tmp_path_factory.mktemp("written")
    data = Data("xor_b", "(b)", "matrix_offline", {"map_name": "xor", "quality": "b"})
    made = comparison(datasets=[data], methods=METHODS[:2], seeds=range(2), share=True,
                      metric="test_battle_won_mean", with_paper=False)  # fmt: skip
    cells = cells_of(made)
    raw = {"returns": [2 / 3, 1.0000004], "lengths": [1, 1], "battle_won": [1.0, 0.0]}
    runs = {
        key: made_run(key[2], 0.5 + key[2] / 3, cell.config().values, raw=raw)
        for key, cell in cells.items()
    }
    write(made, runs, folder)
    return made, cells, folder


@pytest.fixture
def written(record, tmp_path):
    """The same, in a copy of the folder."""
    made, cells, folder = record
    return made, cells, Path(shutil.copytree(folder, tmp_path / "written"))


def test_a_table_is_written_anew_from_its_file_alone(written):
    made, cells, folder = written
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = recorded_runs(made, cells, folder, folder / "nowhere")
    assert len(kept) == 4
    assert [test["t_env"] for test in kept["xor_b", "bc", 0].tests] == [0, 100]  # all test points
    write(made, kept, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    content = json.loads(before["table.json"])  # as files of before November 2026 are
    for entry in content["entries"]:
        for run in entry["runs"]:
            del run["tests"]
    old = tables.write_json(folder / "table.json", content).read_bytes()
    write(made, recorded_runs(made, cells, folder, folder / "nowhere"), folder)
    assert (folder / "table.json").read_bytes() == old


def test_runs_that_would_be_lost_are_named(written):
    made, cells, folder = written
    fewer = {key: cell for key, cell in cells.items() if key[2] == 0}
    with pytest.raises(UserError, match=r"2 runs that would be lost.*xor_b/bc/seed1, which is not"):
        recorded_runs(made, fewer, folder, folder)
    other = {
        key: Cell(c.id, c.algorithm, c.environment, {**c.overrides, "lr": 0.5})
        for key, c in cells.items()
    }
    with pytest.raises(UserError, match=r"another configuration \(lr was 0\.0005 and is 0\.5\)"):
        recorded_runs(made, other, folder, folder)
    assert recorded_runs(made, cells, folder / "elsewhere", folder) == {}


def test_a_damaged_file_is_one_clear_error(written):
    made, cells, folder = written
    for content in ("{", "[]", '{"entries": [{}]}', '{"entries": 5}'):
        (folder / "table.json").write_text(content)
        with pytest.raises(UserError, match=r"table\.json would be written anew, and cannot be"):
            recorded_runs(made, cells, folder, folder)
