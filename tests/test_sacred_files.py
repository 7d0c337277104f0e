"""What Sacred writes of a run."""

import json
import math

import pytest

from inspo.utils.sacred_files import RecordObserver


def refuse(token):
    raise AssertionError(f"{token} is no JSON")


@pytest.fixture
def observer(tmp_path):
    observer = RecordObserver(tmp_path)
    observer.dir = str(tmp_path)
    return observer


def test_what_is_no_number_in_json_is_null(observer, tmp_path):
    observer.save_json({"a": [math.nan, 1.5, -math.inf], "b": {"c": [math.inf, 2]}}, "run.json")
    found = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert found == {"a": [None, 1.5, None], "b": {"c": [None, 2]}}


def test_a_record_that_cannot_be_written_leaves_the_one_before(observer, tmp_path, monkeypatch):
    observer.save_json({"a": 1}, "run.json")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    observer.save_json({"a": 2}, "run.json")
    assert observer.failures == {"run.json": "No space left on device"}
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
