"""Grid files, and the command that runs them: here and on a local Ray."""

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
import yaml

from inspo import sweep
from inspo.experiments.campaign import Failure, run_cells
from inspo.experiments.cells import Cell, finished_run_of, is_offline
from inspo.experiments.gridfile import FORMAT, offline_algorithms, read_grid
from inspo.experiments.pool import CellIsBusy, LocalPool, gpu_shares, make_pool
from inspo.utils.errors import ConfigError, DatasetError, UserError
from inspo.utils.paths import PROJECT_ROOT

# Five updates of BC on a matrix game: most of a cell's time is Python starting.
TINY = {"t_max": 2560, "final_test_nepisode": 7}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


def grid_file(tmp_path, content, name="grid.yaml"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def small(**changes):
    """A grid of one cell; None takes a key away."""
    content = {"algorithms": "bc", "environments": "matrix_offline", "maps": "xor"}
    content |= {"qualities": "b", "seeds": 1} | changes
    return {key: value for key, value in content.items() if value is not None}


# Grid files


def test_the_example_of_the_help(tmp_path):
    grid = read_grid(grid_file(tmp_path, FORMAT))
    assert (grid.name, grid.folder) == ("grid", "my_grid")
    # The first block: 2 algorithms x 2 qualities; the second 1; the third 2 x 2 variants x 2.
    ids = [cell.id for cell in grid.cells if cell.id.endswith("seed0")]
    block, both = "2s3z_{}/{}/seed0".format, ("medium", "mixed")
    varied = [f"inspo_alpha_{alpha}_td_lambda_{td}" for alpha in (0.03, 0.3) for td in (0.0, 0.95)]
    assert ids == [
        *(block(quality, name) for name in ("bc", "inspo") for quality in both),
        "2s3z_mixed/inspo_control/seed0",
        *(block(quality, name) for quality in both for name in varied),
    ]
    seeds = [cell.overrides["seed"] for cell in grid.cells]
    assert seeds == sorted(seeds) and len(seeds) == 3 * len(ids)
    assert grid.about == {"inspo_control": "all weights 1"}
    cell = next(cell for cell in grid.cells if "control/seed2" in cell.id)
    values = cell.config().values
    assert values["advantage_weighting"] is False and values["test_nepisode"] == 32
    assert values["ratio"] == "geometric" and "ratio" not in grid.cells[0].config().values
    assert (values["map_name"], values["quality"], values["seed"]) == ("2s3z", "mixed", 2)
    varied = next(c for c in grid.cells if c.id == block("mixed", "inspo_alpha_0.3_td_lambda_0.0"))
    values = varied.config().values
    assert (values["alpha"], values["td_lambda"], values["advantage_weighting"]) == (0.3, 0.0, True)


def test_defaults_of_a_file(tmp_path):
    content = small(maps=None, qualities=None, seeds=[4, 2], algorithms="offline", budget="own")
    grid = read_grid(grid_file(tmp_path, content, "mine.yaml"))
    assert grid.folder == "mine"
    # The environment's own map and quality, and the order of the seeds by number.
    found = offline_algorithms()
    assert {"bc", "inspo"} <= set(found) and not {"qmix", "mappo"} & set(found)
    assert [cell.id for cell in grid.cells] == [
        f"xor_a/{name}/seed{seed}" for seed in (2, 4) for name in found
    ]
    assert grid.cells[0].overrides == {"seed": 2}
    assert is_offline("bc") and not is_offline("qmix")
    path = grid_file(tmp_path, small(), "my grid.yaml")
    with pytest.raises(ConfigError, match=r"my grid\.yaml: folder: .*found .my grid"):
        read_grid(path)
    assert read_grid(grid_file(tmp_path, small(folder="mine"), "my grid.yaml"))


def test_paths_are_of_the_project_and_names_do_not_depend_on_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vary = {"dataset.path": ["some/a.h5", "/other/b.h5"], "lr": [0.1]}
    content = small(vary=vary, overrides={"dataset": {"path": "none.h5"}})
    first, second = read_grid(grid_file(tmp_path, content)).cells
    ids = [f"xor_b/bc_path_{name}.h5_lr_0.1/seed0" for name in "ab"]
    assert [first.id, second.id] == ids
    assert first.config().values["dataset"]["path"] == str(PROJECT_ROOT / "some/a.h5")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (small(blocks=[{"sed": 3}]), "block 1: unknown key 'sed'. Did you mean 'seeds'"),
        (small(algorithms="inspoo"), "unknown algorithm (--config) 'inspoo'. Did you mean 'inspo'"),
        (small(environments="matrix_ofline"), "unknown environment (--env-config) 'matrix_ofline'"),
        (small(maps="xorr"), "no matrix game is called 'xorr'"),
        (small(algorithms=[]), "algorithms: the list is empty, so there is nothing to run"),
        (small(seeds=0), "seeds: expected a number of seeds"),
        (small(seeds=[-1]), "found '[-1]'"),
        (small(maps=3), "maps: expected names, found '3'"),
        (small(of_algorithm={"inspo": {}}), "of_algorithm: no algorithm of this grid 'inspo'"),
        (small(of_algorithm={"bc": 3}), "bc: expected key: value lines, found '3'"),
        (small(of_algorithm={"bc": {"ratio": "full"}}), "'ratio'"),
        (small(blocks=[]), "blocks: expected a list of blocks, found nothing"),
        (small(vary={"lr": 0.1}), "vary: lr: expected a list of values, found '0.1'"),
        (small(overrides={"test_nepisode": -1}), "test_nepisode: expected at least 0, found -1"),
        (small(overrides={"seed": 1}), "'seed' does not belong there; it is said by seeds"),
        (small(vary={"quality": ["a", "b"]}), "vary: 'quality' does not belong there"),
        (small(algorithms=["bc", "inspo"], label="x"), "label: 'x' would name 2 algorithms"),
        (small(blocks=[{}, {"overrides": {"lr": 0.1}}]), "two cells share the name"),
        (small(folder="../up"), "folder: expected a name such as my_grid, found '../up'"),
        (small(label="x" * 300), "cannot be the name of a cell"),
        (small(environments="matrix"), "this environment trains online and reads no data"),
        (small(overrides={"datasets_dir": 3}), "overrides: datasets_dir: expected a path, found"),
        ("seeds: 2020-13-45", "line 1: '2020-13-45' cannot be read as timestamp"),
        ("- 1", "expected 'key: value' lines, found list"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, content, words, capsys):
    path = grid_file(tmp_path, content)
    assert sweep.main([str(path), "--results", str(tmp_path / "results")]) == 2
    message = capsys.readouterr().err
    assert words in message and str(path) in message
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("content", "options", "kind", "words"),
    [
        (small(algorithms="qmix"), [], ConfigError, "qmix learns as it plays, and matrix_offline"),
        (small(qualities="bb"), [], DatasetError, "none of quality 'bb' can be made for matrix"),
        (small(overrides={"dataset.path": "/no/f.h5"}), [], DatasetError, "no such file or folder"),
        (small(), ["--jobs", "0"], ConfigError, "--jobs: expected at least 1, found 0"),
        (small(), ["--jobs-per-gpu", "0"], ConfigError, "--jobs-per-gpu: expected at least 1"),
        (small(), ["--jobs-per-gpu", "4"], ConfigError, "--jobs-per-gpu: torch sees no GPU"),
        (small(), ["--jobs-per-gpu", "4", "--backend", "ray"], ConfigError, "--gpus 0.25"),
        (small(), ["--jobs-per-gpu", "4", "--jobs", "2"], ConfigError, "one of them says"),
        (small(), ["--backend", "slurm"], ConfigError, "expected local or ray, found 'slurm'"),
        (small(), ["--address", "auto"], ConfigError, "--address belongs to --backend ray"),
        (small(), ["--only", "xor_c"], ConfigError, "no cell of"),
        (small(), ["--results", "~nosuch/x"], ConfigError, "--results: the home folder in '~nosuc"),
    ],
)
def test_nothing_runs_if_something_cannot(tmp_path, content, options, kind, words):
    path = grid_file(tmp_path, content | {"overrides": content.get("overrides", {}) | TINY})
    with pytest.raises(kind, match=words):
        sweep.sweep(sweep.parse([str(path), "--results", str(tmp_path / "results"), *options]))
    assert not (tmp_path / "results").exists()


def test_starcraft_without_the_game_is_one_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "smac", None)
    sc2 = small(environments="sc2_offline", maps="5m_vs_6m", qualities="medium", seeds=3)
    words = ["--results", str(tmp_path / "results")]
    assert sweep.main([str(grid_file(tmp_path, sc2)), *words]) == 2
    assert "SMAC cannot be imported" in capsys.readouterr().err
    # Training alone needs no game; it is the data that are missing then.
    sc2 |= {"overrides": {"test_nepisode": 0, "datasets_dir": str(tmp_path)}}
    assert sweep.main([str(grid_file(tmp_path, sc2)), *words]) == 2
    assert "download cfcql/5m_vs_6m" in capsys.readouterr().err


def test_the_committed_grids_can_be_read():
    grids = [read_grid(path) for path in (PROJECT_ROOT / "sweeps").glob("*.yaml")]
    assert grids and all(
        cell.config().values["final_test_nepisode"] == 320 for g in grids for cell in g.cells
    )


# Running


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):
    """A grid of a good cell and one whose data turn out to be none, run by the command."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "broken.h5").write_text("no data")
    broken = {"algorithms": "bc", "label": "broken"}
    broken |= {"overrides": {"dataset.path": str(folder / "broken.h5")}}
    content = small(
        overrides=TINY | {"datasets_dir": str(data)}, blocks=[{}, broken], folder="games"
    )
    words = [str(grid_file(folder, content)), "--results", str(folder / "results")]
    status = sweep.main(words)
    return folder / "results" / "runs" / "games", words, status


def test_a_failed_cell_stops_no_other_and_the_index_says_so(swept):
    folder, _, status = swept
    assert status == 1
    index = json.loads((folder / "grid_grid.json").read_text())
    good, bad = index["cells"]
    assert index["grid"] == "grid.yaml"
    assert (good["cell"], good["status"]) == ("xor_b/bc/seed0", "finished")
    assert good["updates"] == 5 and "test_return_mean" in good["final"]
    assert (folder / good["record"] / "run.json").exists()
    assert good["command"].startswith("./run.sh --config=bc --env-config=matrix_offline with")
    assert (bad["cell"], bad["status"]) == ("xor_b/broken/seed0", "failed")
    assert bad["error"].startswith("error: ") and "broken.h5" in bad["error"]


def test_what_is_finished_is_listed_and_not_run_again(swept, monkeypatch, capsys):
    _, words, _ = swept
    assert sweep.main([*words, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "xor_b/bc/seed0      finished" in out and "xor_b/broken/seed0  started" in out

    def never(*_):
        raise AssertionError("a finished cell was started")

    monkeypatch.setattr(LocalPool, "submit", never)
    assert sweep.main([*words, "--only", "xor_b/bc"]) == 0
    assert "xor_b/bc/seed0      finished" in capsys.readouterr().out
    assert sweep.main([*words, "--dry-run", "--only", "*/seed0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "--config=bc" in lines[0] and "t_max=2560" in lines[0]


def test_another_configuration_is_told_before_anything_runs(swept, tmp_path, capsys):
    _, words, _ = swept
    content = yaml.safe_load(Path(words[0]).read_text())
    content["overrides"]["lr"] = 0.5
    other = [str(grid_file(tmp_path, content)), *words[1:]]
    assert sweep.main(other) == 2
    assert "another configuration: lr was 0.0005 and is 0.5" in capsys.readouterr().err
    assert sweep.main([*other, "--plan"]) == 0
    assert "of another configuration" in capsys.readouterr().out


def test_what_finished_elsewhere_after_it_failed_here_is_finished(swept, monkeypatch, capsys):
    folder, words, _ = swept

    def failed_here(cells, pool, folder, title, report):
        for cell in cells:
            report.failed[cell.id] = Failure(cell, 1, "lost", folder / cell.id / "log.txt")

    monkeypatch.setattr(sweep, "run_cells", failed_here)
    assert sweep.main([*words, "--only", "xor_b/bc"]) == 0
    index = json.loads((folder / "grid_grid.json").read_text())["cells"]
    assert [entry["status"] for entry in index] == ["finished", "started"]
    assert "final" in index[0] and "error" not in index[0]
    assert sweep.main([*words, "--only", "xor_b/broken"]) == 1
    assert "failed: xor_b/broken/seed0" in capsys.readouterr().err


# Pools

OBEDIENT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", flush=True)
time.sleep(600)
"""
PYTHON = [sys.executable, "-c"]


def wait_until_ready(home):
    deadline = time.monotonic() + 120
    log = home / "log.txt"
    while not (log.exists() and "\nready" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_cells_on_a_local_ray(data, tmp_path):
    pytest.importorskip("ray")
    pool = make_pool("ray", 2, None, 0.0)
    assert pool.slots == 2
    obedient = pool.submit([*PYTHON, OBEDIENT], tmp_path / "a")
    wait_until_ready(tmp_path / "a")
    with pytest.raises(CellIsBusy, match="another process"):
        pool.submit([*PYTHON, "print(1)"], tmp_path / "a").result(timeout=300)
    pool.stop()
    assert obedient.result(timeout=300) == 3
    place = {"map_name": "xor", "quality": "b", "datasets_dir": str(data), "seed": 0} | TINY
    cell = Cell("bc/seed0", "bc", "matrix_offline", place)
    report = run_cells([cell], pool, tmp_path / "grid", progress=False)
    assert report.finished == [cell.id] and not report.failed
    assert finished_run_of(tmp_path / "grid", cell).updates == 5


def test_without_ray_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"requirements-dev\.txt"):
        make_pool("ray", 1, None, 0.0)


def test_an_address_where_nobody_listens_is_an_error_at_once():
    pytest.importorskip("ray")
    with socket.socket() as taken:  # bound, and so free of others, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"no Ray cluster answers at {address}.*refused"):
            make_pool("ray", 1, address, 0.0)


def test_the_local_pool_holds_the_folder(tmp_path):
    pool = LocalPool(2)
    obedient = pool.submit([*PYTHON, OBEDIENT], tmp_path)
    wait_until_ready(tmp_path)
    with pytest.raises(CellIsBusy):
        pool.submit(["true"], tmp_path)
    pool.stop()
    assert obedient.result(timeout=300) == 3
    with open(tmp_path / ".lock", "w") as lock:  # free again
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    stubborn = pool.submit(["sleep", "600"], tmp_path)
    pool.close()
    assert stubborn.result(timeout=300) == -9


SAY_SHARE = """
import os, time
print(os.environ.get("CUDA_VISIBLE_DEVICES"), len(os.sched_getaffinity(0)), flush=True)
print("ready", flush=True)
"""


def test_runs_share_gpus_and_cpus_evenly(tmp_path, monkeypatch):
    shares = gpu_shares(["0", "1"], 4, range(16))
    assert [share.gpu for share in shares] == ["0", "1"] * 4
    assert [cpu for share in shares for cpu in share.cpus] == list(range(16))
    assert [share.cpus for share in gpu_shares(["0"], 3, [5, 7])] == [(5,), (5,), (7,)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-x")
    pool = make_pool("local", None, None, 0.0, 1)
    assert pool.slots == 2
    try:
        for name in "ab":  # one after the other, both on a free share
            pool.submit([*PYTHON, SAY_SHARE], tmp_path / name).result(timeout=300)
        logs = [(tmp_path / name / "log.txt").read_text() for name in "ab"]
    finally:
        pool.close()
    n_cpus = max(len(os.sched_getaffinity(0)) // 2, 1)
    assert all(f"\n3 {n_cpus}\n" in log for log in logs)
