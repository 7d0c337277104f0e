"""The benchmark of clashing conventions: what is measured first, and what a record comes to."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from inspo.envs import conventions
from inspo.estimation.crossplay import Mixture, Task, summarise
from inspo.experiments import crossplay as pages
from inspo.experiments.campaign import CampaignReport
from inspo.utils.errors import UserError
from paper import conventions as page
from paper import tables
from paper.options import Options
from paper.reader import read_table
from tests.records import made_run


def measured(task, n_teams, n_agents, alone=-12.0, together=-18.0):
    """A cross-play in which all teams earn the same, and all mixtures of two."""
    mixtures = [Mixture((k,) * n_agents, alone, 0.1, 8) for k in range(n_teams)]
    mixtures += [
        Mixture((a, *(b,) * (n_agents - 1)), together, 0.1, 8)
        for a in range(n_teams) for b in range(n_teams) if a != b
    ]  # fmt: skip
    return summarise(task, [f"script {k}" for k in range(n_teams)], mixtures)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results that hold the cross-play of every map of the table, without pictures."""
    monkeypatch.setattr(pages, "draw", lambda path, found: path)
    for data in read_table("conventions").comparison.datasets:
        task = Task(page._env(data), data.overrides["map_name"], {})
        n_agents = int(task.map_name[-1]) if task.env == "mpe" else 2
        values = {"alone": 40.0, "together": 0.0} if task.env == "overcooked" else {}
        n_teams = 6 if task.map_name == "spread_3" else 4
        pages.write(tmp_path / "conventions", measured(task, n_teams, n_agents, **values), {})
    return tmp_path


def test_every_run_of_the_table_can_be_asked_for():
    for cell in read_table("conventions", 1).cells.values():
        cell.config()
    assert list(read_table("conventions").comparison.seeds) == [0, 1, 2, 3, 4]


def test_a_dataset_is_seen_beside_a_single_team_and_cross_play(folder, monkeypatch):
    monkeypatch.setattr(page, "cross_play", None)  # all is measured
    datasets = {data.key: data for data in read_table("conventions").comparison.datasets}
    found = page.reference(datasets["spread_3_conventions_3"], folder / "conventions")
    assert found == page.Reference(-12.0, -18.0, 3, 3)
    assert found.share(-12.0) == 1 and found.share(-15.0) == 0.5
    alone = page.reference(datasets["coord_ring_one_team"], folder / "conventions")
    assert alone.team == 40.0 and math.isnan(alone.cross)


def test_teams_that_do_not_clash_are_refused(tmp_path):
    data = read_table("conventions").comparison.datasets[1]
    mild = measured(Task("mpe", "spread_3", {}), 6, 3, together=-14.0)  # a sixth is lost
    pages.write(tmp_path, mild, {})
    with pytest.raises(UserError, match="lose less than 25% of their return"):
        page.reference(data, tmp_path)


def test_what_is_missing_is_measured_first(tmp_path, monkeypatch):
    data = read_table("conventions").comparison.datasets[1]
    asked = []

    def cross_play(folders, n_scripts, task, **_):
        asked.append((folders, n_scripts, task.map_name))
        return measured(task, n_scripts, 3)

    monkeypatch.setattr(page, "cross_play", cross_play)
    assert page.reference(data, tmp_path).team == -12.0
    page.reference(data, tmp_path)
    assert asked == [([], 2, "spread_3")]


def test_which_convention_a_seed_ended_with():
    raw = {"convention_0": [0, 0, 0, 1], "convention_1": [1, 1, 1, 2], "convention_2": [2, 2, 1, 2]}
    run = made_run(0, -13.0, {"env": "mpe"}, raw=raw)
    ending = page.ending_of(run)
    assert ending.joint == ["0", "1", "2"] and ending.share == 0.5
    assert ending.agents == [("0", 0.75), ("1", 0.75), ("2", 0.75)]
    kitchen = made_run(
        0, 40.0, {"env": "overcooked"}, raw={"convention_0": [2], "convention_1": [3]}
    )
    assert page.ending_of(kitchen).joint == ["t", "b"]
    assert page.ending_of(made_run(0, 1.0)) is None


def test_the_files_are_written_from_the_runs(folder, monkeypatch, capsys):
    """Faked runs of one map: a method that ends as a team, and one between the two."""

    def run_cells(cells, pool, _, on_finished, **__):
        pool.close()
        for cell in cells:
            value = -12.0 if cell.algorithm == "inspo" else -15.0
            raw = {f"convention_{i}": [i] * 4 for i in range(3)}
            run = made_run(cell.overrides["seed"], value, raw=raw)
            on_finished(cell, replace(run, config=cell.config().values))
        return CampaignReport(finished=[cell.id for cell in cells])

    monkeypatch.setattr(tables, "run_cells", run_cells)
    options = Options(
        "conventions", ["inspo_ours", "bc"], seeds=1, maps=["spread_3"], results=folder, jobs=1
    )
    assert page.reproduce(options)
    text = (folder / "paper" / "conventions_seeds.md").read_text()
    assert "A single team: -12.00. Cross-play: -18.00." in text.replace("−", "-")
    record = json.loads((folder / "paper" / "conventions_seeds.json").read_text())
    shares = {row["method"]: row["share"] for row in record["seeds"]
              if row["dataset"] == "spread_3_conventions"}  # fmt: skip
    assert shares["inspo_ours"] == 1 and shares["bc"] == 0.5
    assert all(row["ending"]["joint"] == ["0", "1", "2"] for row in record["seeds"])
    assert (folder / "paper" / "conventions.png").stat().st_size > 10_000
    assert {row["dataset"] for row in record["seeds"]} == {
        "spread_3_one_team", "spread_3_conventions", "spread_3_conventions_3",
    }  # fmt: skip
    with pytest.raises(UserError, match="--maps"):
        page.reproduce(replace(options, maps=["spread_9"]))


def test_labels_of_spread_are_the_nearest_landmarks():
    places = np.array([[0.0, 0.0], [1.0, 1.0]])
    marks = np.array([[0.9, 0.9], [0.1, 0.0]])
    end = np.concatenate([places.ravel(), np.zeros(4), marks.ravel()])
    state = np.stack([[end, end * 0, end * 0]])  # what follows the end does not count
    assert conventions.labels("mpe", "spread_2", state, np.array([0])).tolist() == [[1, 0]]
    assert conventions.labels("smax", "3m", state, np.array([0])) is None
    assert conventions.labels("overcooked", "cramped_room", state, np.array([0])) is None
