"""Equal budgets and the tuning stage of a grid, on runs that are only told of."""

import subprocess
from pathlib import Path

import pytest
import yaml

from inspo import sweep
from inspo.experiments import tuning
from inspo.experiments.gridfile import read_grid
from inspo.experiments.records import Run
from inspo.utils.errors import ConfigError, UserError

GRID = {
    "algorithms": ["bc", "inspo"],
    "environments": "matrix_offline",
    "maps": "xor",
    "qualities": ["a", "b"],
    "seeds": 2,
    "budget": {"steps": 1_500_000, "episode_steps": 2},
    "overrides": {"test_nepisode": 8},
    "tuning": {
        "seeds": [10, 11],
        "qualities": "b",
        "score": "test_expected_return",
        "configurations": {
            "bc": [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}],
            "inspo": [{"alpha": 0.1}, {"alpha": 0.2}, {"alpha": 0.3, "behaviour": {"lr": 0.1}}],
        },
    },
}


def written(folder: Path, **changes) -> Path:
    """The grid file; `tuning__key` changes a key of its section, None takes one away."""
    content = GRID | {k: v for k, v in changes.items() if "__" not in k}
    own = {k.partition("__")[2]: v for k, v in changes.items() if "__" in k}
    content["tuning"] = {k: v for k, v in (GRID["tuning"] | own).items() if v is not None}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


@pytest.fixture
def told(monkeypatch):
    """Finished runs: the larger the key that is varied, the better, but for seed 11 of bc."""

    def finished(folder, cell):
        value = cell.overrides.get("lr", cell.overrides.get("alpha"))
        value = 0.05 if cell.id == "xor_b/bc_tune2/seed11" else value
        final = {"test_expected_return": value}
        return Run(folder, "COMPLETED", {}, final=final, dataset={"hash": "f" * 64}, hours=0.1)

    monkeypatch.setattr(tuning, "finished_run_of", finished)


def test_cells_share_what_the_budget_leaves(tmp_path):
    """InSPO fits: 400 updates of 256 episodes of 2 steps, and 500 of 512 transitions."""
    grid = read_grid(written(tmp_path))
    t_max = {cell.algorithm: cell.overrides["t_max"] for cell in grid.cells}
    assert t_max == {"bc": 1_500_000, "inspo": 1_500_000 - 400 * 256 * 2 - 500 * 512}
    by_name = {cell.id: cell for cell in grid.tuning.all_cells}
    assert len(by_name) == 2 * 3 * 2
    assert by_name["xor_b/inspo_tune2/seed11"].overrides == {
        "map_name": "xor", "quality": "b", "seed": 11, "test_nepisode": 8,
        "alpha": 0.3, "behaviour.lr": 0.1, "t_max": t_max["inspo"],
    }  # fmt: skip


def test_the_best_configuration_is_frozen_and_taken(tmp_path, told):
    grid = read_grid(written(tmp_path))
    stage = grid.tuning
    stage.freeze(tmp_path, tuning.final_scores(stage.score))
    content = yaml.safe_load(stage.file.read_text())
    assert content["algorithms"]["bc"]["chosen"] == {"lr": 0.2}  # .2, .2 before .3, .05
    assert content["algorithms"]["inspo"]["chosen"] == {"alpha": 0.3, "behaviour.lr": 0.1}
    tried = content["algorithms"]["bc"]["configurations"][2]
    assert tried["score"] == 0.175 and tried["minutes"] == 12.0
    assert content["data"] == {"xor_b": "f" * 64}
    cells = {cell.id: cell.overrides for cell in read_grid(tmp_path / "grid.yaml").cells}
    assert cells["xor_a/bc/seed0"]["lr"] == 0.2
    assert cells["xor_b/inspo/seed1"]["behaviour.lr"] == 0.1


def git(folder, *words):
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", folder, *name, *words], check=True, capture_output=True)


def test_the_grid_runs_only_with_committed_choices_and_fresh_seeds(tmp_path, told, monkeypatch):
    grid = read_grid(written(tmp_path))
    with pytest.raises(UserError, match="nothing is chosen yet"):
        grid.tuning.require_frozen(grid.cells)
    grid.tuning.freeze(tmp_path, tuning.final_scores("test_expected_return"))
    monkeypatch.setattr(tuning, "hash_of_data", lambda cell: None)
    with pytest.raises(UserError, match="not committed"):
        grid.tuning.require_frozen(grid.cells)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "choose")
    grid.tuning.require_frozen(grid.cells)
    with pytest.raises(ConfigError, match="10 served for tuning"):
        grid.tuning.require_frozen(read_grid(written(tmp_path, seeds=[0, 10])).cells)
    monkeypatch.setattr(tuning, "hash_of_data", lambda cell: "a" * 64)
    with pytest.raises(ConfigError, match=r"xor_b had the hash f{16}, and has a{16} now"):
        grid.tuning.require_frozen(grid.cells)
    monkeypatch.undo()
    grid.tuning.file.write_text(grid.tuning.file.read_text() + "# a thought\n")
    with pytest.raises(UserError, match="not committed"):
        tuning.require_committed(grid.tuning.file)


def test_choices_made_for_another_grid_are_refused(tmp_path, told):
    read_grid(written(tmp_path)).tuning.freeze(tmp_path, lambda runs: [0.0] * len(runs))
    for changes in ({"tuning__seeds": [12]}, {"tuning__score": "test_return_mean"}):
        with pytest.raises(ConfigError, match="made for other settings"):
            read_grid(written(tmp_path, **changes))
    (tmp_path / "grid_tuned.yaml").write_text("algorithms: 3\n")
    with pytest.raises(ConfigError, match="no file that --tune has written"):
        read_grid(written(tmp_path))


BC, INSPO = GRID["tuning"]["configurations"].values()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": None}, "train for different numbers of steps"),
        ({"budget": 3}, "budget: expected own"),
        ({"budget": {"steps": 1000, "episode_steps": 2}}, "1,000 steps are fewer than inspo needs"),
        ({"overrides": {"t_max": 5}}, "t_max: the grid has a budget"),
        ({"tuning__score": None}, "tuning: expected the key score"),
        ({"tuning__sead": 3}, "Did you mean 'seeds'"),
        ({"tuning__configurations": {"bc": BC}}, "inspo has no configurations"),
        ({"tuning__configurations": {"bc": BC[:2], "inspo": INSPO}}, "bc 2, inspo 3"),
        ({"tuning__configurations": {"bc": BC, "inspo": INSPO, "icq": BC}}, "icq is no algorithm"),
        ({"tuning__configurations": {"bc": 3}}, "a list of overrides for each algorithm"),
    ],
)
def test_a_wrong_section_is_one_error(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_grid(written(tmp_path, **changes))


def test_the_command_plans_the_stage_and_refuses_the_grid_before_it(tmp_path, capsys):
    words = [str(written(tmp_path)), "--results", str(tmp_path)]
    assert sweep.main([*words, "--tune", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "xor_b/bc_tune0/seed10" in said and "0 of 12 finished" in said
    assert sweep.main(words) == 2
    assert "nothing is chosen yet" in capsys.readouterr().err
    other = written(tmp_path, tuning__seeds=[10])
    content = yaml.safe_load(other.read_text())
    del content["tuning"]
    other.write_text(yaml.safe_dump(content))
    assert sweep.main([*words, "--tune"]) == 2
    assert "no section `tuning`" in capsys.readouterr().err
