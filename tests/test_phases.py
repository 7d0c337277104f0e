"""What a run is at: the numbers, the words, the bar, and the run's record."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from inspo.utils import phases
from inspo.utils.logging import Logger
from inspo.utils.phases import Phase


@pytest.fixture
def clock(monkeypatch):
    """The time that phases see; `clock.now` sets it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.parametrize(
    ("options", "done", "note", "text", "share"),
    [
        (
            {"total": 1000, "unit": "update"}, 250, "held-out NLL 0.5",
            "p 250/1000 updates, 25.0/s, 00:30 left, held-out NLL 0.5", 0.25,
        ),
        # What was done before the session says nothing of its rate.
        (
            {"total": 700_000, "initial": 350_000}, 35_000, "",
            "p 385k/700k steps, 3.50k/s, 01:30 left", 0.55,
        ),
        ({"total": 7}, 0, "", "p 0/7 steps", 0.0),
        ({"total": 7}, 9, "", "p 9/7 steps, 0.90/s, 00:00 left", 1.0),  # whole batches go beyond
        ({"total": 0}, 0, "", "p 0/0 steps", 0.0),
        ({}, 0, "", "p", 0.0),
    ],
)  # fmt: skip
def test_a_phase_in_words_and_as_a_share(clock, options, done, note, text, share):
    told: list[dict] = []
    with Phase("p", **options, tell=told.append) as phase:
        clock.now += 10.0
        phase.update(done, note)
    assert told[-1] == {"name": "p", "share": pytest.approx(share), "text": text}


def test_the_record_has_the_phase_of_now():
    run = SimpleNamespace(log_scalar=None, info={"command": "c"})
    logger = Logger()
    logger.setup_sacred(run)
    logger.phase("reading")
    assert run.info["phase"]["text"] == "reading"
    with logger.phase("training", 10) as training:
        training.update(5)
        with logger.phase("test", 4, unit="episode") as test:
            test.update(4)
        assert run.info["phase"]["name"] == "test"
        training.update(1)
    assert run.info["phase"]["name"] == "training" and run.info["phase"]["share"] == 0.6
    assert run.info["command"] == "c"


@pytest.mark.parametrize(
    ("bars", "total", "brief", "shown"),
    [
        (True, 4, False, True),
        (False, 4, False, False),
        (True, None, False, False),
        (True, 4, True, False),
    ],
)
def test_the_bar(monkeypatch, bars, total, brief, shown):
    err = io.StringIO()
    monkeypatch.setattr(phases.sys, "stderr", err)
    with Logger(bars=bars).phase("fitting", total, unit="update", brief=brief) as phase:
        phase.update(3, "held-out NLL 0.5")
    text = err.getvalue()
    assert ("fitting:  75%" in text and "held-out NLL 0.5" in text) == shown == bool(text)
