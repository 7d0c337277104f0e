"""The scripts that measure: without a GPU they say so, and what they count is what they say."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SHAPE = (3, 6, 10, 12, 20, 5, 2)


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The scripts are no package: they import each other from their folder."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("name", ["learner_speed", "many_runs", "growth", "gpu"])
def test_without_a_gpu_there_is_one_clear_line(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = [] if name == "gpu" else ["--device", "cuda"]
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *words])
    with pytest.raises(SystemExit) as ended:
        __import__(name).main()
    assert ended.value.code == f"{name}.py: torch sees no GPU on this machine; use --device cpu"


def test_an_update_starts_so_many_operations():
    """Bounds that keep launches from coming back."""
    import learner_speed

    shape = learner_speed.MAPS["5m_vs_6m"]
    batch = learner_speed.synthetic_batch(shape, 128, np.random.default_rng(0))
    printed = ["ratio=geometric", "joint_kl_coef=0.0"]
    for algorithm, keys, most in (("inspo", printed, 1050), ("bc", [], 65), ("cfcql", [], 245)):
        count = learner_speed.count_operators(algorithm, shape, keys, batch, bridge=False)
        assert most // 2 < count <= most, algorithm


def test_times_are_of_every_update_but_the_first():
    import learner_speed

    learner, _ = learner_speed.make_learner("bc", SHAPE)
    batch = learner_speed.synthetic_batch(SHAPE, 8, np.random.default_rng(0))
    wall, cpu = learner_speed.time_updates(learner, [batch], 0, 2, "cpu")
    assert len(wall) == len(cpu) == 2 and learner.updates == 3 and min(wall) > 0


def test_results_are_written_as_they_come_and_time_is_kept(tmp_path, capsys):
    import gpu

    script = gpu.Script(tmp_path / "out.jsonl", minutes=1)
    script.step("a", 5, lambda: {"x": 1})
    script.step("b", 5, lambda: 1 / 0)
    script.step("c", 100, lambda: {"x": 2})  # more than is left
    script.end = time.monotonic()
    script.command("d", 5, ["learner_speed.py"])
    script.write("end", left_out=script.left_out)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["a", "b", "end"]
    assert lines[0]["x"] == 1 and "ZeroDivisionError" in lines[1]["error"]
    assert lines[2]["left_out"] == ["c", "d"]
