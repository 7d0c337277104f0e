"""Tables 4 to 7 by command: their cells, the paper's values, and what may be called StarCraft."""

import json
import math
import sys
from pathlib import Path
from statistics import mean

import pytest
from inspo import reproduce
from inspo.evaluation import comparison, paper, starcraft
from inspo.evaluation.comparison import main_table, to_markdown
from inspo.evaluation.grid import GridReport, Result
from inspo.evaluation.gridfile import offline_algorithms
from inspo.utils.config import load_config
from inspo.utils.errors import ConfigError, UserError

SC2, SMAX = starcraft.SIMULATORS["sc2"], starcraft.SIMULATORS["smax"]


def result(cell, value, env="sc2", simulator="StarCraft II build 75689, SMAC", **changes):
    final = {"t_env": 100, "test_battle_won_mean": value, "test_return_mean": 20 * value}
    settings = dict(
        cell_id=cell.id, config={"env": env, "seed": cell.overrides["seed"]}, commit="0" * 40,
        command=["--config=bc"], seed=cell.overrides["seed"], tests=[final], final=final,
        raw={"battle_won": [1, 0], "returns": [20.0, 0.0]}, dataset={"win_rate": 0.5},
        simulator=simulator, updates=10, t_env=100, hours=0.5, sessions=1, host={}, versions={},
        run_folder=Path("run"), model_folder=None,
    )  # fmt: skip
    return Result(**(settings | changes))


# --------------------------------------------------------------------------------------------------
# The paper's values, as far as they say the same thing twice


def test_table_4_has_the_mean_that_the_paper_prints():
    assert len(paper.WIN_RATES) == 16
    for method, printed in paper.MEAN_WIN_RATE.items():
        values = [row[method][0] for row in paper.WIN_RATES.values()]
        # Rounded values, and a mean that is cut (OMIGA's 0.397 stands there as 0.39).
        assert printed - 0.006 < mean(values) < printed + 0.01, method
    # A digit of each row that no mean would show.
    assert [row["inspo"][1] for row in paper.WIN_RATES.values()] == [
        0.06, 0.09, 0.01, 0.04, 0.05, 0.05, 0.01, 0.09,
        0.06, 0.07, 0.12, 0.06, 0.06, 0.02, 0.11, 0.12,
    ]  # fmt: skip


def test_tables_5_and_6_repeat_table_4():
    for place, row in paper.ALPHAS.items():
        assert row["auto"][0] == paper.WIN_RATES[place]["inspo"][0]
        assert list(row) == ["0.1", "5", "10", "50", "auto"] and math.isnan(row["auto"][1])
    assert len(paper.ORDERS) == 8
    for place, row in paper.ORDERS.items():
        assert row["random"] == paper.WIN_RATES[place]["inspo"]
        assert abs(row["fixed"][0] - row["semi_greedy"][0]) <= 0.07  # "not significant"
    assert all(row["inspo"] > row["cfcql"] for row in paper.HOURS.values())


# --------------------------------------------------------------------------------------------------
# Which runs


def test_table_4_on_smax_is_the_grid_file():
    tables = starcraft.table4(SMAX, None, None)
    assert [table.comparison.name for table in tables] == ["2s3z", "6h_vs_8z", "3s_vs_5z"]
    table, *others = tables
    made = table.comparison
    assert (made.name, table.folder, made.with_paper) == ("2s3z", "smax", False)
    assert "SMAX" in made.title and not any(data.published for data in made.datasets)
    offline = offline_algorithms()
    # Four qualities of each; mixed_90_10 of two; the control on two; CFCQL's published values on 4.
    assert len(table.cells) == 3 * (4 * len(offline) + 2 + 2 + 4)
    assert {method.algorithm for method in made.methods} == set(offline)
    keys = [method.key for method in made.methods]
    assert keys.index("bc") < keys.index("cfcql") < keys.index("inspo") < keys.index("icq")
    assert keys.index("control") == keys.index("inspo") + 1

    published = {
        "medium": (0.1, 0.5),
        "medium_replay": (5, 0.1),
        "expert": (50, 0.5),
        "mixed": (0.5, 0),
    }
    for quality, expected in published.items():
        values = table.cells[f"2s3z_{quality}", "cfcql_published", 0].config().values
        assert (values["global_cql_alpha"], values["softmax_temp"]) == expected
        shared = table.cells[f"2s3z_{quality}", "cfcql", 0].config().values
        assert values["t_max"] == shared["t_max"]
    for cell in table.cells.values():
        values = cell.config().values
        assert (values["test_nepisode"], values["final_test_nepisode"]) == (32, 320)
    control = table.cells["2s3z_medium", "control", 0]
    assert control.config().values["advantage_weighting"] is False
    assert control.id == "2s3z_medium/control/seed0"

    # The other maps: the four qualities of each, and the values published for StarCraft II's.
    assert [len(table.cells) for table in others] == 2 * [3 * (4 * len(offline) + 4)]
    for table in others:
        for (data, method, _), cell in table.cells.items():
            if method == "cfcql_published":
                values, words = cell.config().values, cell.overrides
                game = ["--config=cfcql", "--env-config=sc2_offline", "with"]
                game += [f"{key}={words[key]}" for key in ("map_name", "quality")]
                theirs = load_config(game).values
                for key in ("global_cql_alpha", "softmax_temp"):
                    assert values[key] == theirs[key], (data, key)


def test_the_configuration_of_an_algorithm_on_smax_is_the_same_for_all_maps_and_qualities():
    tables = starcraft.table4(SMAX, 1, None)
    place = ("quality", "map_name", "env_args")
    for algorithm in offline_algorithms():
        found = [
            {k: v for k, v in cell.config().values.items() if k not in place}
            for table in tables
            for (_, method, _), cell in table.cells.items()
            if method == algorithm
        ]
        assert len(found) >= 12 and all(values == found[0] for values in found)


def test_table_4_on_starcraft():
    (table,) = starcraft.table4(SC2, None, ["2s3z"])
    assert len(table.cells) == 16 * len(offline_algorithms()) * 5
    assert table.comparison.name == "table4" and table.folder == "sc2"
    values = table.cells["6h_vs_8z_expert", "cfcql", 4].config().values
    assert (values["env"], values["global_cql_alpha"], values["softmax_temp"]) == ("sc2", 50.0, 0.0)
    inspo = table.cells["5m_vs_6m_medium", "inspo", 0].config()
    assert inspo.values["batch_size"] == 128 and inspo.values["tune_alpha"] is True
    assert any("auto-alpha" in note for note in inspo.notes)
    (fewer,) = starcraft.table4(SC2, 2, None)
    assert set(fewer.comparison.seeds) == {0, 1}


@pytest.mark.parametrize(("on", "usual"), [(SC2, "auto"), (SMAX, "0.1")], ids=["sc2", "smax"])
def test_table_5_shares_the_runs_of_table_4(on, usual):
    (table,) = starcraft.table5(on, 1, None)
    (fourth, *_) = starcraft.table4(on, 1, None)
    found = {}
    for method in table.comparison.methods:
        values = table.cells[table.comparison.datasets[0].key, method.key, 0].config().values
        found["auto" if values["tune_alpha"] else f"{values['alpha']:g}"] = method.key
    assert list(found) == ["0.1", "5", "10", "50", "auto"]
    assert found.pop(usual) == "inspo"
    assert len(set(found.values())) == 4 and "inspo" not in found.values()
    for (data, method, seed), cell in table.cells.items():
        if method == "inspo":
            other = fourth.cells[data, "inspo", seed]
            assert other.id == cell.id and other.config().values == cell.config().values


@pytest.mark.parametrize("on", [SC2, SMAX], ids=["sc2", "smax"])
def test_table_6(on):
    (table,) = starcraft.table6(on, None, None)
    orders = {
        method: cell.config().values["agent_order"] for (_, method, _), cell in table.cells.items()
    }
    assert orders == {
        "inspo": "random",
        "inspo_order_fixed": "fixed",
        "inspo_order_semi_greedy": "semi_greedy",
    }
    text = main_table(table.comparison, [], "test_battle_won_mean")
    assert ("0.84 ± 0.05" in text) == on.is_the_game


# --------------------------------------------------------------------------------------------------
# What is written


def test_the_table_of_starcraft_stands_beside_the_papers_values():
    (table,) = starcraft.table4(SC2, 2, None)
    results = {
        key: result(cell, (0.1 if key[1] == "bc" else 0.5) + 0.02 * key[2])
        for key, cell in table.cells.items()
        if key[1] in ("bc", "inspo") and not (key[1] == "bc" and key[0] == "2s3z_expert")
    }
    text = to_markdown(table.comparison, results)
    rows = [[c.strip() for c in line.split("|")] for line in text.splitlines() if line[:1] == "|"]
    header = rows[0]
    medium = next(row for row in rows if row[1] == "2s3z medium")
    assert medium[2] == "0.50"  # the data
    assert header[3:5] == ["BC, paper", "ours"] and medium[3:5] == ["0.16 ± 0.07", "0.11 ± 0.01"]
    at = header.index("InSPO, paper")
    assert medium[at : at + 2] == ["0.23 ± 0.06", "**0.51 ± 0.01**"]
    assert "ICQ, paper" not in header and "ICQ" in header
    average = next(row for row in rows if row[1] == "average")
    assert average[3:5] == ["0.38", "–"]  # BC lacks a dataset
    assert average[at : at + 2] == ["0.55", "0.51"]
    assert "Wilson" not in text


def test_smax_is_never_labelled_as_starcraft(tmp_path, capsys, monkeypatch):
    """The whole command with the engine replaced."""
    asked = []

    def run_grid(cells, launcher, folder, on_finished, **_):
        asked.extend(cells)
        for cell in cells:
            on_finished(cell, result(cell, 0.5, env="smax", simulator="jaxmarl SMAX"))
        return GridReport(finished=[cell.id for cell in cells])

    monkeypatch.setattr(reproduce, "run_grid", run_grid)
    monkeypatch.setattr(comparison, "draw", lambda *_: Path("a picture"))
    words = ["--seeds", "1", "--results", str(tmp_path)]
    assert reproduce.main(["table5", "--on", "smax", "--qualities", "mixed", *words]) == 0
    assert {cell.config().values["quality"] for cell in asked} == {"mixed"} and len(asked) == 5
    text = (tmp_path / "smax" / "table5.md").read_text()
    assert "SMAX, not StarCraft II" in text and "paper's numbers cannot" in text
    assert "0.74" not in text and ", paper" not in text
    assert "SMAX" in text.splitlines()[0]

    monkeypatch.setattr(reproduce, "prepare_starcraft", lambda *_: None)
    assert reproduce.main(["table5", "--qualities", "mixed", *words]) == 2
    assert "cannot stand in a table of StarCraft II" in capsys.readouterr().err
    assert "No run is finished yet" in (tmp_path / "sc2" / "table5.md").read_text()


def test_what_was_not_made_in_the_game_is_refused():
    (table,) = starcraft.table6(SC2, 1, None)
    cell = next(iter(table.cells.values()))
    starcraft.check_tested_in_the_game([result(cell, 0.5)])
    for changes in (
        {"env": "smax", "simulator": "jaxmarl 0.2.0 SMAX"},
        {"simulator": "a stand-in for StarCraft II build 75689, SMAC"},
        {"simulator": None},
    ):
        with pytest.raises(UserError, match=r"cannot stand in a table of StarCraft II"):
            starcraft.check_tested_in_the_game([result(cell, 0.5), result(cell, 0.5, **changes)])


def test_without_the_game_nothing_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "smac", None)
    assert reproduce.main(["table4", "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "SMAC cannot be imported" in err and "docker" in err
    assert list(tmp_path.iterdir()) == []


def test_data_are_fetched_once_for_each_map(tmp_path, monkeypatch):
    from inspo.offline import download

    (table,) = starcraft.table6(SC2, 1, None)
    cells = reproduce.changed(table.cells, {"datasets_dir": str(tmp_path)})
    for quality in starcraft.QUALITIES:
        path = tmp_path / "sc2" / f"6h_vs_8z_{quality}.h5"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    fetched = []
    monkeypatch.setattr(
        download, "download", lambda name, folder, log: fetched.append((name, folder))
    )
    starcraft.download_data(cells.values(), say=print)
    assert fetched == [("cfcql/5m_vs_6m", tmp_path)]


# --------------------------------------------------------------------------------------------------
# Table 7


def test_hours_of_training(tmp_path):
    cells = starcraft.timed_cells(SMAX, 1, None)
    cell = cells["2s3z", "inspo", 0]
    # Two equal parts of a run at 1 and at 1/3 of an update a second: 2 s an update. 10 updates made
    # 40,000 steps, so 1e7 steps are 2,500 updates: 5,000 s.
    (tmp_path / "metrics.json").write_text(
        json.dumps({"updates_per_second": {"steps": [1, 2], "values": [1.0, 1 / 3]}})
    )
    run = result(cell, 0.0, t_env=40_000, run_folder=tmp_path)
    assert starcraft.training_hours(run) == pytest.approx(5000 / 3600)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="expected updates_per_second"):
        starcraft.training_hours(run)


@pytest.mark.parametrize("on", [SC2, SMAX], ids=["sc2", "smax"])
def test_table_7(on, tmp_path):
    cells = starcraft.timed_cells(on, 2, ["2s3z"])
    assert len(cells) == 4
    values = {cell.config().values["batch_size"] for cell in cells.values()}
    assert values == {128}
    if on.is_the_game:  # the runs of Table 4
        (fourth,) = starcraft.table4(on, 2, None)
        cell = cells["2s3z", "cfcql", 1]
        assert fourth.cells["2s3z_medium", "cfcql", 1] == cell
        assert starcraft.timing_folder(on) == fourth.folder
    results = {}
    for (m, algorithm, seed), cell in cells.items():
        folder = tmp_path / algorithm / str(seed)
        folder.mkdir(parents=True)
        pace = 1.0 if algorithm == "cfcql" else 0.5
        (folder / "metrics.json").write_text(json.dumps({"updates_per_second": {"values": [pace]}}))
        results[m, algorithm, seed] = result(cell, 0.0, t_env=36_000, run_folder=folder)
    paths = starcraft.write_times(on, results, ["2s3z"], tmp_path)
    row = next(line for line in paths[0].read_text().splitlines() if line.startswith("| 2s3z"))
    cells = [text.strip() for text in row.split("|")[1:-1]]
    # 1e7 steps are 2,778 updates, at 1 and 0.5 a second.
    ours = ["0.77 ± 0.00 h", "1.54 ± 0.00 h", "2.00"]
    if on.is_the_game:
        assert cells == ["2s3z", "1.00 h", ours[0], "1.75 h", ours[1], "1.75", ours[2]]
    else:
        assert cells == ["2s3z", *ours] and "SMAX" in paths[0].read_text()
    assert len(json.loads(paths[2].read_text())["hours"]) == 4


# --------------------------------------------------------------------------------------------------
# The command line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["table4", "--maps", "2s3zz"], "Table 4 on sc2 has no map '2s3zz'. Did you mean '2s3z'?"),
        (["table5", "--maps", "2s3z"], "Table 5 on sc2 has no map '2s3z'. Known: 6h_vs_8z"),
        (["smax", "--maps", "8m"], "Table 4 on smax has no map '8m'"),
        (["table4", "--on", "smaxx"], "unknown simulator 'smaxx'. Did you mean 'smax'?"),
        (["table6", "--on", "smax", "--qualities", "medim"], "Did you mean 'medium'"),
        (["table7", "--qualities", "medium"], "--qualities belongs to"),
        (["table1", "--maps", "2s3z"], "--maps belongs to"),
        (["smax", "--on", "sc2"], "--on belongs to"),
        (["table6", "--algs", "bc"], "table6 has its own algorithms"),
        (["smax", "--algs", "controll"], "Did you mean 'control'"),
        (["table4", "--address", "auto"], "--address belongs to --backend ray"),
        (["table4", "--backend", "rey"], "--backend: expected local or ray, found 'rey'"),
    ],
)
def test_errors_of_the_options(words, says, tmp_path, capsys):
    assert reproduce.main([*words, "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_algs_asks_for():
    (table,) = starcraft.table4(SMAX, 1, ["2s3z"])
    _, options = reproduce.parse(["smax", "--algs", "inspo"])
    methods = [method.key for method in table.comparison.methods]

    def asked(*names):
        _, options = reproduce.parse(["smax", "--algs", *names])
        return [key for key in methods if reproduce.wanted(key, options, table.comparison)]

    assert asked("inspo") == ["inspo"]
    assert asked("control") == ["control"]
    assert asked("cfcql") == ["cfcql", "cfcql_published"]
    assert asked("cfcql_published") == ["cfcql_published"]
    with pytest.raises(ConfigError):
        starcraft.find_simulator("x")
    assert options.on == "sc2"
