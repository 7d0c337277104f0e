"""The paper's tables and figures: their data, their runs, and the commands of reproduce.py."""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest

from inspo import reproduce
from inspo.experiments.campaign import CampaignReport
from inspo.experiments.comparison import recorded_runs, to_markdown, write
from inspo.experiments.gridfile import offline_algorithms
from inspo.offline import download
from inspo.tabular.matrix_games import payoff_tensor
from inspo.utils.config import load_config
from inspo.utils.errors import UserError
from inspo.utils.paths import PROJECT_ROOT
from paper import figure3, figure5, main_job, paths, starcraft, tables, timing
from paper.bridge import order_home
from paper.commands import ALL, COMMANDS
from paper.options import Options, changed
from paper.reader import read_file, read_table
from tests.records import made_run

GAMES = ("table1", "table2", "table3", "figure3")
QUALITIES = ("medium", "medium_replay", "expert", "mixed")


def played(seed, value, **changes):
    """A run in StarCraft II, won as often as lost."""
    facts = {"hash": "abc", "episodes": 50, "return_mean": 0.5, "win_rate": 0.5}
    game = {"simulator": "StarCraft II build 75689, SMAC", "dataset": facts}
    config = {"name": "bc", "env": "sc2", "seed": seed}
    return replace(made_run(seed, value), **game | {"config": config} | changes)


def run_of(cell, value, **changes):
    return played(cell.overrides["seed"], value, **{"config": cell.config().values} | changes)


@pytest.fixture
def engine(monkeypatch):
    """In place of the runs: each gives `engine.value`; `engine.cells` are those requested."""

    state = SimpleNamespace(value=1.0, changes={}, cells=[])

    def run_cells(cells, pool, folder, on_finished, **_):
        pool.close()
        state.cells = list(cells)
        for cell in cells:
            on_finished(cell, run_of(cell, state.value, **state.changes))
        return CampaignReport(finished=[cell.id for cell in cells])

    monkeypatch.setattr(tables, "run_cells", run_cells)
    return state


# The paper's values, as far as they say the same thing twice


def printed(name, on=None):
    """dataset -> method -> the (mean, deviation) that the paper prints."""
    if name == "table4":
        (table,) = starcraft.starcraft_tables("table4", "sc2", Options("table4"))
    else:
        table = read_table(name, on=on)
    return {data.key: data.published for data in table.comparison.datasets}


def test_the_papers_values_say_the_same_wherever_they_stand_twice():
    values, means = printed("table4"), read_file("table4")["paper_average"]
    assert len(values) == 16 and list(means) == ["bc", "omar", "cfcql", "omiga", "inspo"]
    for method, average in means.items():
        # Rounded values, and a mean that is cut (OMIGA's 0.397 stands there as 0.39).
        assert average - 0.006 < mean(row[method][0] for row in values.values()) < average + 0.01
    # A digit of each row that no mean would show.
    assert [row["inspo"][1] for row in values.values()] == [
        0.06, 0.09, 0.01, 0.04, 0.05, 0.05, 0.01, 0.09,
        0.06, 0.07, 0.12, 0.06, 0.06, 0.02, 0.11, 0.12,
    ]  # fmt: skip
    fifth, sixth = (printed(name, "sc2") for name in ("table5", "table6"))
    assert list(fifth) == ["6h_vs_8z_expert", "6h_vs_8z_mixed"] and len(sixth) == 8
    for key, row in fifth.items():
        assert row["inspo"][0] == values[key]["inspo"][0] and math.isnan(row["inspo"][1])
    for key, row in sixth.items():
        assert row["inspo"] == values[key]["inspo"]
        fixed, greedy = row["inspo_order_fixed"], row["inspo_order_semi_greedy"]
        assert abs(fixed[0] - greedy[0]) <= 0.07  # "not significant"


def test_other_values_agree_with_each_other_and_with_the_games():
    assert all(row["inspo"] > row["cfcql"] for row in read_file("table7")["paper"].values())
    first, third = printed("table1"), printed("figure3")
    assert third["xor_b"] == first["xor_b"]
    for method, joint in read_file("figure3")["joint_policies"].items():
        # The figure's joint policies have the returns of Table 1 (which has no relaxed OMIGA).
        value = (np.array(joint) * payoff_tensor("xor")).sum()
        if method in third["xor_b"]:
            assert value == pytest.approx(third["xor_b"][method][0], abs=0.16), method
    for part in figure5.ablations():
        assert part.printed.sum() == pytest.approx(1)
    for name in ("table1", "table2", "table3"):
        table = read_table(name)
        for row in printed(name).values():
            assert set(row) == {m.key for m in table.comparison.methods} - {"inspo_joint_kl"}


# Which runs


def test_table_4_on_smax_is_the_grid_file():
    made = starcraft.starcraft_tables("smax", "smax", Options("smax"))
    assert [table.comparison.name for table in made] == ["2s3z", "6h_vs_8z", "3s_vs_5z"]
    table, *others = made
    assert (table.runs, table.files, table.comparison.with_paper) == ("smax", "smax", False)
    offline = offline_algorithms()
    # Four qualities of each; mixed_90_10 of two; the control on two; CFCQL's published values on 4.
    assert len(table.cells) == 3 * (4 * len(offline) + 2 + 2 + 4)
    assert [len(table.cells) for table in others] == 2 * [3 * (4 * len(offline) + 4)]
    keys = [method.key for method in table.comparison.methods]
    assert keys.index("bc") < keys.index("cfcql") < keys.index("inspo") < keys.index("icq")
    assert keys.index("control") == keys.index("inspo") + 1
    control = table.cells["2s3z_medium", "control", 0]
    assert control.config().values["advantage_weighting"] is False
    assert control.id == "2s3z_medium/control/seed0"
    place, own = ("quality", "map_name", "env_args", "seed"), {}
    for table in made:
        for (data, method, seed), cell in table.cells.items():
            if seed:
                continue
            values = cell.config().values
            assert (values["test_nepisode"], values["final_test_nepisode"]) == (32, 320)
            # An algorithm's own configuration is the same for all maps and qualities.
            mine = {key: value for key, value in values.items() if key not in place}
            assert method not in offline or own.setdefault(method, mine) == mine
            if method == "cfcql_published":
                words = [f"{key}={cell.overrides[key]}" for key in ("map_name", "quality")]
                theirs = load_config(["--config=cfcql", "--env-config=sc2_offline", "with", *words])
                for key in ("global_cql_alpha", "softmax_temp"):
                    assert values[key] == theirs.values[key], (data, key)
    # What --algs names: an algorithm with the variants that have its name, or one of them.
    comparison = made[0].comparison
    for name, expected in (("inspo", ["inspo"]), ("control", ["control"]),
                           ("cfcql", ["cfcql", "cfcql_published"]),
                           ("cfcql_published", ["cfcql_published"])):  # fmt: skip
        options = reproduce.parse(["smax", "--algs", name])
        assert [k for k in keys if tables.is_requested(k, options, comparison)] == expected


def test_table_4_on_starcraft(tmp_path, capsys, monkeypatch):
    (table,) = starcraft.starcraft_tables("table4", "sc2", Options("table4", maps=["2s3z"]))
    assert len(table.cells) == 16 * len(offline_algorithms()) * 5
    assert (table.comparison.name, table.runs, table.files) == ("table4", "sc2", "sc2")
    values = table.cells["6h_vs_8z_expert", "cfcql", 4].config().values
    assert (values["env"], values["global_cql_alpha"], values["softmax_temp"]) == ("sc2", 50.0, 0.0)
    inspo = table.cells["5m_vs_6m_medium", "inspo", 0].config()
    assert inspo.values["batch_size"] == 128 and inspo.values["tune_alpha"] is True
    assert any("auto-alpha" in note for note in inspo.notes)
    # Data that are not here are fetched, once for each map; without the game nothing runs.
    cells = [table.cells[f"{m}_{q}", "bc", 0] for m in ("2s3z", "5m_vs_6m") for q in QUALITIES]
    cells = changed(dict(enumerate(cells)), {"datasets_dir": str(tmp_path)})
    for quality in QUALITIES:
        path = tmp_path / "sc2" / f"2s3z_{quality}.h5"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    fetched = []
    monkeypatch.setattr(download, "download", lambda name, folder: fetched.append(name))
    starcraft.download_data(cells.values())
    assert fetched == ["cfcql/5m_vs_6m"]
    monkeypatch.setitem(sys.modules, "smac", None)
    assert reproduce.main(["table4", "--seeds", "1", "--results", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "SMAC cannot be imported" in err and "docker" in err
    assert not (tmp_path / "r").exists()


# What is written


def test_the_table_of_starcraft_stands_beside_the_papers_values():
    (table,) = starcraft.starcraft_tables("table4", "sc2", Options("table4", seeds=2))
    runs = {
        key: run_of(cell, (0.1 if key[1] == "bc" else 0.5) + 0.02 * key[2])
        for key, cell in table.cells.items()
        if key[1] in ("bc", "inspo") and not (key[1] == "bc" and key[0] == "2s3z_expert")
    }
    text = to_markdown(table.comparison, runs)
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


def test_smax_is_never_labelled_as_starcraft(tmp_path, capsys, monkeypatch, engine):
    engine.value, engine.changes = 0.5, {"simulator": "jaxmarl SMAX"}
    monkeypatch.setattr(starcraft, "prepare_starcraft", lambda *_: None)
    words = ["--qualities", "mixed", "--seeds", "1", "--results", str(tmp_path)]
    assert reproduce.main(["table5", "--on", "smax", *words]) == 0
    qualities = {cell.config().values["quality"] for cell in engine.cells}
    assert qualities == {"mixed"} and len(engine.cells) == 5
    text = (tmp_path / "smax" / "table5.md").read_text()
    assert "SMAX" in text.splitlines()[0] and "SMAX, not StarCraft II" in text
    assert "0.74" not in text and ", paper" not in text
    for simulator in ("jaxmarl SMAX", "a stand-in for StarCraft II build 75689, SMAC", None):
        engine.changes = {"simulator": simulator}
        assert reproduce.main(["table5", *words]) == 2
        assert "cannot stand in a table of StarCraft II" in capsys.readouterr().err
    assert "No run is finished yet" in (tmp_path / "sc2" / "table5.md").read_text()
    starcraft.check_tested_in_the_game([played(0, 0.5)])


@pytest.mark.parametrize("on", ["sc2", "smax"])
def test_table_7(on, tmp_path):
    cells = timing.timed_cells(on, 2, ["2s3z"])
    assert len(cells) == 4
    assert {cell.config().values["batch_size"] for cell in cells.values()} == {128}
    if on == "sc2":  # the runs of Table 4
        (fourth,) = starcraft.starcraft_tables("table4", on, Options("table4", seeds=2))
        assert fourth.cells["2s3z_medium", "cfcql", 1] == cells["2s3z", "cfcql", 1]
        assert read_file("table7", on)["runs"] == fourth.runs
    # Two equal parts of a run at 1 and at 1/3 of an update a second are 2 s an update; 10 updates
    # made 36,000 steps, so 1e7 steps are 2,778 updates.
    runs = {}
    for (m, algorithm, seed), cell in cells.items():
        folder = tmp_path / algorithm / str(seed)
        folder.mkdir(parents=True)
        pace = [1.0] if algorithm == "cfcql" else [1.0, 1 / 3]
        (folder / "metrics.json").write_text(json.dumps({"updates_per_second": {"values": pace}}))
        runs[m, algorithm, seed] = run_of(cell, 0.0, t_env=36_000, folder=folder)
    files = timing.write_times(on, runs, ["2s3z"], tmp_path)
    (row,) = (line for line in files[0].read_text().splitlines() if line.startswith("| 2s3z"))
    texts = [text.strip() for text in row.split("|")[1:-1]]
    ours = ["0.77 ± 0.00 h", "1.54 ± 0.00 h", "2.00"]
    if on == "sc2":
        assert texts == ["2s3z", "1.00 h", ours[0], "1.75 h", ours[1], "1.75", ours[2]]
    else:
        assert texts == ["2s3z", *ours] and "SMAX" in files[0].read_text()
    assert len(json.loads(files[2].read_text())["hours"]) == 4
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="expected updates_per_second"):
        timing.write_times(on, runs, ["2s3z"], tmp_path)


# The games in closed form, and pictures

CONFIG = {"alpha": 0.1, "beta": 10.0, "beta_finish": 0.01, "beta_hold": 0.25, "beta_end": 0.75}


def test_closed_forms_end_where_theory_says():
    a, b = (part.endings(CONFIG) for part in figure5.ablations())
    assert a["inspo"].returns == pytest.approx([20], abs=0.01)
    assert a["no_entropy"].returns == pytest.approx([5], abs=0.01)
    assert a["no_entropy_random_start"].returns == pytest.approx([20], abs=0.01)
    assert b["inspo"].returns == pytest.approx([1], abs=0.01)
    assert sorted(b["simultaneous_large_steps"].returns) == pytest.approx([-2, 0], abs=0.01)
    assert str(b["simultaneous_large_steps"]) == "cycle of −2.00 and 0.00"
    # From a symmetric start agents that move together stay alike, however small their steps.
    joint = b["simultaneous_no_entropy"].joints[0]
    np.testing.assert_allclose(joint, joint.T, atol=1e-9)
    assert b["simultaneous_random_start"].returns == pytest.approx([1], abs=0.01)


def matrix_run(game, quality):
    """A run whose tests follow the closed form, as a network's would be recorded."""
    config = CONFIG | {"critic_warmup": 0.2, "t_max": 100}
    config |= {"name": "inspo", "env": "matrix", "seed": 0}
    way = paths.path_of_closed_form(game, quality, config)
    tests = []
    for step in range(0, 101, 4):
        joint = way.joints[int(max(0, (step / 100 - 0.2) / 0.8) * 400)]
        shares = {f"test_joint_{i}{j}": float(v) for (i, j), v in np.ndenumerate(joint)}
        value = float((joint * payoff_tensor(game)).sum())
        tests.append({"t_env": step, "test_expected_return": value, **shares})
    return played(0, 0.0, config=config, tests=tests, final=tests[-1])


def test_pictures_are_written(tmp_path):
    run = matrix_run("xor", "b")
    way = paths.path_of_network(run)
    assert (way.share[0], way.share[-1]) == (0, 1) and way.joints[0].sum() == pytest.approx(1)
    for game, quality in (("m_ne", "imbalanced"), ("xor", "c")):
        exact = paths.path_of_closed_form(game, quality, run.config)
        assert np.diff(paths.rise(game, quality, exact, 0.1)).min() > -1e-9  # Prop. 4
    paths.draw_paths(tmp_path / "paths.png", {("xor", "b"): run})
    parts = figure5.ablations(2)
    endings = {part.key: part.endings(run.config) for part in parts}
    text = figure5.write_files(tmp_path / "figure5", parts, endings, {("xor_b", "inspo", 0): run})[
        0
    ].read_text()
    assert "1 of 1 (1 missing)" in text and "cycle of −2.00 and 0.00" in text
    picture = partial(figure3.draw_figure3, read_file("figure3")["joint_policies"])
    comparison = replace(read_table("figure3").comparison, picture=picture)
    write(comparison, {("xor_b", "inspo", 0): run}, tmp_path)
    test = played(0, 0.5).final | {"test_episodes": 320.0}
    won = played(0, 0.5, config={"test_nepisode": 320}, tests=[test | {"t_env": 0}, test])
    facts = {"n_episodes": 100, "win_rate": 0.4, "return_mean": 14.0, "return_std": 5.0}
    main_job.draw_curve(tmp_path / "curve.png", {"inspo": won}, "medium", facts)
    header, rows = main_job.closing_table({"inspo": played(0, 0.0)}, "medium", facts)
    assert [row[0] for row in rows] == ["InSPO", "data (medium)"]
    assert rows[0][1:4] == ["0.500", "[0.095, 0.905]", "1.75"] and rows[1][4] == "[13.02, 14.98]"
    assert all(len(row) == len(header) for row in rows)
    for name in ("paths", "figure5", "figure3", "curve"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 2, 0), (3, 0, 2, 1)])
def test_the_order_in_which_agents_come_home_on_bridge(order):
    from inspo.envs.bridge import encode
    from inspo.envs.bridge_boards import BOARD_OF

    board = BOARD_OF[len(order)]
    boards = np.stack([board.starts["adjacent"]] * (len(order) + 1))  # [T, agents, 2]
    for t, agent in enumerate(order):
        boards[t + 1 :, agent] = board.goals[agent]
    assert order_home(encode(boards)) == order
    assert order_home(encode(boards[:-1])) is None
    together = np.stack([board.starts["adjacent"], board.goals])
    assert order_home(encode(together)) == tuple(range(len(order)))


# What a table's file holds already


def record_of(tmp_path):
    record = json.loads((tmp_path / "paper" / "table2.json").read_text())
    return {(e["dataset"], e["method"]): e for e in record["entries"]}


def test_runs_that_a_table_holds_stay_until_they_are_run_anew(tmp_path, capsys, engine):
    """The runs' folders are not there, as in a fresh checkout."""
    words = ["table2", "--seeds", "1", "--results", str(tmp_path), "--algs"]
    engine.value = 3.0
    assert reproduce.main([*words, "bc", "inspo"]) == 0
    before = record_of(tmp_path)
    engine.value = 4.0
    assert reproduce.main([*words, "bc"]) == 0 and len(engine.cells) == 2
    after = record_of(tmp_path)
    assert set(after["m_ne_balanced", "bc"]["values"].values()) == {4.0}
    kept = "m_ne_balanced", "inspo"
    assert after[kept]["runs"] == before[kept]["runs"]  # to the last word
    assert after[kept]["values"] == before[kept]["values"]
    text = (tmp_path / "paper" / "table2.md").read_text()
    assert "**4.00**" in text and " 3.00 " in text
    assert "OMAR on balanced, imbalanced (all seeds)" in text
    assert "Not finished" in capsys.readouterr().out
    engine.value = None  # the table's number is not in the result
    assert reproduce.main([*words, "omiga"]) == 2
    assert "test_expected_return" in capsys.readouterr().err
    engine.value = 2.0  # what the file lacks alone
    assert reproduce.main([*words, "bc", "omar", "--fill"]) == 0
    assert [cell.algorithm for cell in engine.cells] == ["omar", "omar"]
    assert set(record_of(tmp_path)["m_ne_balanced", "bc"]["values"].values()) == {4.0}
    # What would be lost is named, and nothing is run or written.
    content = (tmp_path / "paper" / "table2.json").read_bytes()
    engine.cells = []
    assert reproduce.main([*words, "bc", "--with", "t_max=2560"]) == 2
    assert "of another configuration (t_max was 512000 and is 2560)" in capsys.readouterr().err
    assert not engine.cells and (tmp_path / "paper" / "table2.json").read_bytes() == content


@pytest.mark.parametrize("name", [*GAMES, "table5", "table6", "smax"])
def test_the_committed_tables_can_be_gone_on_with(name):
    """Each run in them is one of its command's, of the configuration that the command has now."""
    games = name in GAMES
    made = [read_table(name)] if games else starcraft.starcraft_tables(name, "smax", Options(name))
    for table in made:
        target = PROJECT_ROOT / "results" / table.files
        kept = recorded_runs(table.comparison, table.cells, target, Path("nowhere"))
        assert len(kept) >= (30 if games else 1)


# The command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smax", "--qualities", "medum"], "Did you mean 'medium'"),
        (["table1", "--algs", "insp"], "Did you mean 'inspo'"),
        (["figure5", "--algs", "bc"], "its own algorithms"),
        (["table1", "--with", "lr"], "key=value"),
        (["table1", "--with", "no_such_key=1"], "no run of this command has the key"),
        (["table2", "--with", "seed=7"], "said by --seeds"),
        (["table4", "--maps", "2s3zz"], "Table 4 on sc2 has no map '2s3zz'. Did you mean '2s3z'?"),
        (["table4", "--on", "smaxx"], "unknown simulator 'smaxx'. Did you mean 'smax'?"),
        (["table1", "--maps", "2s3z"], "--maps belongs to"),
        (["smax", "--algs", "controll"], "Did you mean 'control'"),
        (["bridge", "--qualities", "medium"], "Bridge has optimal, mixed; found 'medium'"),
        (["paths", "--fill"], "--fill belongs to"),
        (["table4", "--address", "auto"], "--address belongs to --backend ray"),
    ],
)
def test_errors_of_the_command_line(words, message, tmp_path, capsys):
    assert reproduce.main([*words, "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_usage(capsys):
    for words, status in ((["table9"], 2), (["table1", "--seeds", "0"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as stop:
            reproduce.main(words)
        assert stop.value.code == status
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_all_goes_on_after_a_failure(tmp_path, monkeypatch):
    made = []

    def command(options):
        made.append(options.command)
        return options.command != "table2"

    for module in {COMMANDS[name][0] for name in ALL}:
        monkeypatch.setattr(f"paper.{module}.reproduce", command)
    assert reproduce.main(["all", "--results", str(tmp_path)]) == 1
    assert tuple(made) == ALL
