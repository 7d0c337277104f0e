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
