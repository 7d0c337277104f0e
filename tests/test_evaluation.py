"""Statistics, tables, comparisons, pictures, and the command line of reproduce.py."""

import doctest
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inspo import reproduce
from inspo.evaluation import games, grid, paper, plots, starcraft, statistics, tables
from inspo.evaluation.comparison import (
    Comparison,
    Data,
    Method,
    cells_of,
    to_markdown,
    write,
)
from inspo.evaluation.grid import GridReport
from inspo.evaluation.recorded import read_recorded
from inspo.utils.errors import ConfigError
from inspo.utils.paths import PROJECT_ROOT


@pytest.mark.parametrize("module", [grid, statistics, tables])
def test_examples_in_docstrings(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0 and outcome.failed == 0


# --------------------------------------------------------------------------------------------------
# The paper's numbers and games


def test_the_papers_numbers_agree_with_what_the_games_must_give():
    assert set(paper.RETURNS["xor", "b"]) == set(paper.NAMES)
    assert paper.RETURNS["m_ne", "imbalanced"]["omiga"] == (5.0, 0.0)
    for figure in (paper.FIGURE_5A, paper.FIGURE_5B):
        assert np.sum(figure) == pytest.approx(1)


def test_closed_forms_end_where_theory_says():
    config = {"alpha": 0.1, "beta": 10.0, "beta_finish": 0.01, "beta_hold": 0.25, "beta_end": 0.75}
    a, b = (games.settle(ablation, config) for ablation in games.ABLATIONS)
    found = {key: end.returns for key, end in a.items()}
    assert found["inspo"] == pytest.approx([20], abs=0.01)
    assert found["no_entropy"] == pytest.approx([5], abs=0.01)
    assert found["no_entropy_random_start"] == pytest.approx([20], abs=0.01)
    assert b["inspo"].returns == pytest.approx([1], abs=0.01)
    assert sorted(b["simultaneous_large_steps"].returns) == pytest.approx([-2, 0], abs=0.01)
    assert b["simultaneous_large_steps"].words() == "cycle of −2.00 and 0.00"
    # From a symmetric start agents that move together stay alike, however small their steps.
    joint = b["simultaneous_no_entropy"].joints[0]
    np.testing.assert_allclose(joint, joint.T, atol=1e-9)
    assert b["simultaneous_random_start"].returns == pytest.approx([1], abs=0.01)


def matrix_run(game, quality, seed=0):
    """A run whose tests follow the closed form, as a network's would be recorded."""
    config = {"alpha": 0.1, "beta": 10.0, "beta_finish": 0.01, "beta_hold": 0.25, "beta_end": 0.75}
    config |= {"critic_warmup": 0.2, "t_max": 100}
    way = games.path_of_closed_form(game, quality, config)
    tests = []
    for step in range(0, 101, 4):
        joint = way.joints[int(max(0, (step / 100 - 0.2) / 0.8) * 400)]
        shares = {f"test_joint_{i}{j}": float(v) for (i, j), v in np.ndenumerate(joint)}
        value = float((joint * games.PAYOFF[game]).sum())
        tests.append({"t_env": step, "test_expected_return": value, **shares})
    made = result(seed, tests[-1]["test_expected_return"], **config)
    made.tests[:] = tests
    made.final.clear()
    made.final.update(tests[-1])
    return made


def test_paths_begin_where_the_policies_do_and_the_potential_rises():
    run = matrix_run("m_ne", "imbalanced")
    way = games.path_of_network(run)
    assert way.share[0] == 0 and way.share[-1] == 1
    assert way.joints[0].sum() == pytest.approx(1)
    for game, quality in (("m_ne", "imbalanced"), ("xor", "c")):
        exact = games.path_of_closed_form(game, quality, run.config)
        assert np.diff(games.rise(game, quality, exact, 0.1)).min() > -1e-9  # Prop. 4


def test_pictures_are_written(tmp_path):
    run = matrix_run("xor", "b")
    games.draw_paths(tmp_path / "paths.png", {("xor", "b"): run})
    endings = {a.data.key: games.settle(a, run.config) for a in games.ABLATIONS}
    runs = {a.data.key: {} for a in games.ABLATIONS}
    runs["xor_b"] = {"inspo": [run]}
    games.draw_figure5(tmp_path / "figure5.png", endings, runs)
    text = games.ablation_table(games.ABLATIONS[1], endings["xor_b"], runs["xor_b"], 2)
    assert "1 of 1 (1 missing)" in text and "missing" in text
    curve = plots.Curve("InSPO", "inspo", [0, 1], [0.1, 0.5], (0.5, (0.4, 0.6)))
    panel = plots.Panel("Win rate", "%", [curve], ("data", 0.3), percent=True)
    plots.learning_curves(tmp_path / "curve.png", "T", [panel])
    method = Method("inspo", "inspo", "InSPO")
    absent = Method("omar", "omar", "OMAR")
    figure3 = Comparison(
        "figure3", "T", "", [Data("xor_b", "(b)", "matrix_offline", {})], [absent, method],
        range(2), "test_expected_return", "return", picture=games.draw_figure3,
    )  # fmt: skip
    write(figure3, {("xor_b", "inspo", 0): run}, tmp_path)
    for name in ("paths", "figure5", "figure3", "curve"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_who_is_home_first_on_bridge():
    from inspo.envs.bridge import DOWN, BridgeVectorEnv
    from inspo.evaluation.bridge_play import first_home
    from inspo.offline.game_data import optimal_plan, play

    for first in (0, 1):
        actions = np.zeros((1, 20, 2), dtype=np.int64)
        actions[0, :8] = optimal_plan(first, DOWN, np.random.default_rng(0))
        arrays, _ = play(BridgeVectorEnv(n_envs=1, episode_limit=20), actions)
        assert first_home(arrays["state"]) == first
        assert first_home(arrays["state"][:4]) is None


# --------------------------------------------------------------------------------------------------
# reproduce.py


def test_the_closing_table():
    made = {"inspo": result(0, 0.5, [20.0, 10.0], [1, 0]), "bc": result(0, 0.0, [5.0, 5.0], [0, 0])}
    facts = {"n_episodes": 100, "win_rate": 0.4, "return_mean": 14.0, "return_std": 5.0}
    header, rows = reproduce.closing_table(made, "medium", facts)
    assert [row[0] for row in rows] == ["InSPO", "BC", "data (medium)"]
    assert rows[0][1:4] == ["0.500", "[0.095, 0.905]", "15.00"]
    assert rows[2][4] == "[13.02, 14.98]"
    assert all(len(row) == len(header) for row in rows)
    unknown = reproduce.closing_table(made, "x", facts | {"win_rate": None, "return_std": None})
    assert unknown[1][-1][1:3] == ["", ""]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["smax", "--qualities", "medum"], "Did you mean 'medium'"),
        (["table1", "--algs", "insp"], "Did you mean 'inspo'"),
        (["table1", "--algs", "qmix"], "qmix learns online"),
        (["table1", "--qualities", "a"], "--qualities belongs to main_job"),
        (["figure5", "--algs", "bc"], "its own algorithms"),
        (["table1", "--with", "lr"], "key=value"),
        (["table1", "--with", "no_such_key=1"], "no run of this command has the key"),
        (["table1", "--with", "lr=abc"], "lr: expected float"),
    ],
)
def test_errors_of_the_command_line(words, says, tmp_path, capsys):
    assert reproduce.main([*words, "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [["table9"], ["table1", "--seeds", "0"], []])
def test_argparse_errors_have_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(words)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in reproduce.COMMANDS) and "examples:" in out


def options(tmp_path, **changes):
    settings = dict(
        algorithms=None, seeds=None, jobs=1, results=tmp_path, qualities=None, changes={},
        on="sc2", maps=None, backend="local", address=None, gpus=0.0,
    )  # fmt: skip
    return reproduce.Options(**(settings | changes))


@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_every_cell_of_the_tables_is_a_configuration(name, tmp_path):
    made = reproduce.paper_comparison(name, options(tmp_path))
    keys = [method.key for method in made.methods]
    assert keys.index("bc") < keys.index("inspo")
    for (data, method, seed), cell in cells_of(made).items():
        values = cell.config().values
        assert values["offline"] and values["seed"] == seed, (data, method)
    assert len(made.seeds) == 5


def test_algorithms_that_have_runs_stay_in_the_table(tmp_path):
    known = {"bc"}
    assert reproduce.further_algorithms(options(tmp_path), tmp_path, known) == []
    (tmp_path / "xor_b" / "inspo").mkdir(parents=True)
    assert reproduce.further_algorithms(options(tmp_path), tmp_path, known) == ["inspo"]


def test_a_table_is_written_from_a_grid(tmp_path, monkeypatch, capsys):
    """The command with the grid replaced: which cells it asks for, what it writes."""
    asked = []

    def run_grid(cells, jobs, folder, on_finished, **_):
        asked.extend(cells)
        for cell in cells:
            on_finished(cell, result(cell.overrides["seed"], 1.0))
        return GridReport(finished=[cell.id for cell in cells])

    monkeypatch.setattr(reproduce, "run_grid", run_grid)
    words = ["table2", "--algs", "bc", "--seeds", "2", "--results", str(tmp_path)]
    assert reproduce.main(words) == 0
    assert {cell.algorithm for cell in asked} == {"bc"} and len(asked) == 4
    text = (tmp_path / "paper" / "table2.md").read_text()
    assert "**1.00 ± 0.00**" in text and "InSPO on balanced, imbalanced (all seeds)" in text
    assert "Not finished" in capsys.readouterr().out
    with pytest.raises(ConfigError):
        reproduce.choose_algorithms(["nothing_like_it"])


# --------------------------------------------------------------------------------------------------
# What a table's file holds already


def table2(tmp_path, monkeypatch, *words, value=1.0):
    """`reproduce.py table2 words`; the grid's runs are not made but give `value`. Status, cells."""
    asked = []

    def run_grid(cells, jobs, folder, on_finished, **_):
        asked.extend(cells)
        for cell in cells:
            config = cell.config().values
            made = result(cell.overrides["seed"], value)
            on_finished(cell, replace(made, cell_id=cell.id, config=config))
        return GridReport(finished=[cell.id for cell in cells])

    monkeypatch.setattr(reproduce, "run_grid", run_grid)
    return reproduce.main(["table2", "--results", str(tmp_path), *words]), asked


def record_of(tmp_path):
    entries = json.loads((tmp_path / "paper" / "table2.json").read_text())["entries"]
    return {(e["dataset"], e["method"]): e for e in entries}


def test_runs_that_a_table_holds_stay_until_they_are_run_anew(tmp_path, monkeypatch):
    """The runs' folders are not there, as in a fresh checkout."""
    assert table2(tmp_path, monkeypatch, "--seeds", "1", "--algs", "bc", "inspo", value=3.0)[0] == 0
    before = record_of(tmp_path)
    status, asked = table2(tmp_path, monkeypatch, "--seeds", "1", "--algs", "bc", value=4.0)
    assert status == 0 and len(asked) == 2
    after = record_of(tmp_path)
    assert set(after["m_ne_balanced", "bc"]["values"].values()) == {4.0}
    kept = "m_ne_balanced", "inspo"
    assert after[kept]["runs"] == before[kept]["runs"]  # to the last word
    assert after[kept]["values"] == before[kept]["values"]
    text = (tmp_path / "paper" / "table2.md").read_text()
    assert "**4.00**" in text and " 3.00 " in text


def test_fill_runs_what_the_table_lacks(tmp_path, monkeypatch):
    assert table2(tmp_path, monkeypatch, "--seeds", "1", "--algs", "bc")[0] == 0
    status, asked = table2(
        tmp_path, monkeypatch, "--seeds", "1", "--algs", "bc", "inspo", "--fill", value=2.0
    )
    assert status == 0
    assert {cell.algorithm for cell in asked} == {"inspo"} and len(asked) == 2
    assert set(record_of(tmp_path)["m_ne_balanced", "bc"]["values"].values()) == {1.0}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "2"], "m_ne_balanced/bc/seed2, which is not among this command's runs"),
        (["--with", "t_max=2560"], "of another configuration (t_max was 512000 and is 2560)"),
    ],
)
def test_runs_that_would_be_lost_are_named_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, words, says
):
    assert table2(tmp_path, monkeypatch, "--algs", "bc", "--seeds", "3")[0] == 0
    path = tmp_path / "paper" / "table2.json"
    before = path.read_bytes()
    status, asked = table2(tmp_path, monkeypatch, "--algs", "bc", *["--seeds", "3"], *words)
    assert status == 2 and not asked and path.read_bytes() == before
    error = capsys.readouterr().err
    assert says in error and "--results" in error


@pytest.mark.parametrize("content", ["{", "[]", '{"entries": [{}]}', '{"entries": 5}'])
def test_a_damaged_table_is_not_written_over(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "paper" / "table2.json"
    path.parent.mkdir()
    path.write_text(content)
    assert table2(tmp_path, monkeypatch, "--algs", "bc")[0] == 2
    assert path.read_text() == content
    assert "table2.json" in capsys.readouterr().err


def test_the_committed_tables_can_be_gone_on_with():
    """Each run in them is one of its command's, of the configuration that the command has now."""
    results_folder = PROJECT_ROOT / "results"
    for name in ("table1", "table2", "table3"):
        made = reproduce.paper_comparison(name, options(results_folder))
        kept = read_recorded(made, cells_of(made), results_folder / "paper", Path("nowhere"))
        assert len(kept) >= 50, name
    smax = starcraft.SIMULATORS["smax"]
    for make in (starcraft.table4, starcraft.table5, starcraft.table6):
        for table in make(smax, None, None):
            if (results_folder / "smax" / f"{table.comparison.name}.json").exists():
                target = results_folder / "smax"
                assert read_recorded(table.comparison, table.cells, target, Path("nowhere"))


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_result_without_the_number_of_the_table_is_refused(tmp_path, monkeypatch, capsys, value):
    status, _ = table2(tmp_path, monkeypatch, "--algs", "bc", "--seeds", "1", value=value)
    assert status == 2
    assert "test_expected_return" in capsys.readouterr().err
    assert "missing" in (tmp_path / "paper" / "table2.md").read_text()


@pytest.mark.parametrize("word", ["seed=7", "quality=balanced", "resume=x", "evaluate=True"])
def test_with_cannot_change_what_tells_runs_apart(tmp_path, capsys, word):
    words = ["table2", "--results", str(tmp_path), "--with", word]
    assert reproduce.main(words) == 2
    assert word.partition("=")[0] in capsys.readouterr().err


def test_a_single_seed_is_not_tested():
    made = comparison(seeds=range(1), methods=METHODS[:2])
    text = to_markdown(made, results(bc=[1.0], inspo=[2.0]))
    assert "**2.00**" in text and "1.00\\*" not in text
    assert "nothing is tested" in text
    both = comparison(seeds=range(2), methods=METHODS[:2])
    assert "nothing is tested" not in to_markdown(both, results(bc=[1.0, 2.0], inspo=[2.0, 1.0]))
