"""Progress: nothing for a short loop, then a line a second."""

from __future__ import annotations

import pytest

from jobs.train.monitor import progress
from jobs.train.monitor.progress import ProgressReporter, make_stderr_reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def _advance_at(clock: list[float], pace: ProgressReporter, *seconds: float) -> None:
    for second in seconds:
        clock[0] = 100.0 + second
        pace.advance()


def test_a_loop_of_less_than_two_seconds_is_not_reported(clock, capsys):
    _advance_at(clock, make_stderr_reporter("layers", 3), 0.5, 1.0, 1.9)
    assert capsys.readouterr().err == ""


def test_a_longer_loop_is_reported_once_a_second(clock):
    reports = list[tuple[int, int]]()
    pace = ProgressReporter(9, lambda done, of: reports.append((done, of)))
    _advance_at(clock, pace, 1.0, 2.0, 2.5, 2.9, 3.0, 3.1)
    assert reports == [(2, 9), (5, 9)]


def test_a_quiet_reporter_prints_nothing(clock, capsys):
    _advance_at(clock, make_stderr_reporter("layers", 2, quiet=True), 5.0, 9.0)
    assert capsys.readouterr().err == ""
