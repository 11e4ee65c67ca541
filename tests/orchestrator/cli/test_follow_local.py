"""Following a run by its journals: what is shown, how often, and that it is complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from orchestrator.cli.follow_local import (
    STEP_LINE_INTERVAL_S,
    BarDisplay,
    LineDisplay,
    follow_run,
    open_display,
)

STARTED = {
    "event": "started",
    "steps": 20,
    "plan": {"workers": 1, "sharding": "replicate", "stages": []},
}


def step(number: int, **facts: Any) -> dict[str, Any]:
    return {"step": number, "stage": "sparse", "loss": 1.0, "tokens_per_second": 10.0,
            "seconds": float(number)} | facts  # fmt: skip


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class RecordingDisplay:
    """A display that records what it shows."""

    def __init__(self) -> None:
        self.events, self.steps = list[Any](), list[int]()

    def show_event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event["event"])

    def show_step(self, metric: Mapping[str, Any]) -> None:
        self.steps.append(metric["step"])


class ScriptedJob:
    """Tells whether the job runs; before each answer it plays one part of its script."""

    def __init__(self, *parts: Any) -> None:
        self._parts = list(parts)

    def __call__(self) -> bool:
        self._parts.pop(0)()
        return bool(self._parts)


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(DirectoryStore(tmp_path), "chat-20260101-120000-0a1b")


def list_printed_steps(
    seconds: Iterable[float], steps: int, capsys: pytest.CaptureFixture[str]
) -> list[int]:
    """Return the steps with a line of their own, each step `seconds` after the previous one."""
    clock = FakeClock()
    display = LineDisplay(clock)
    display.show_event(STARTED | {"steps": steps})
    capsys.readouterr()
    for number, seconds_between in enumerate(seconds, start=1):
        clock.now += seconds_between
        display.show_step(step(number))
    lines = capsys.readouterr().err.splitlines()
    return [int(line.split()[1].split("/")[0]) for line in lines]


PACES = {
    "a step a second": ([1.0] * 13, 13, [1, 6, 11, 13]),
    "ten steps a second": ([0.1] * 20, 20, [1, 20]),
    "slow steps": ([STEP_LINE_INTERVAL_S] * 4, 4, [1, 2, 3, 4]),
    "just too soon": ([STEP_LINE_INTERVAL_S - 0.01] * 4, 4, [1, 3, 4]),
    "stopped before its end": ([1.0] * 8, 100, [1, 6]),
    "a single step": ([1.0], 1, [1]),
}


@pytest.mark.parametrize(("seconds", "steps", "expected"), PACES.values(), ids=PACES)
def test_a_log_has_a_step_line_each_five_seconds_and_always_the_last(
    seconds: list[float], steps: int, expected: list[int], capsys: pytest.CaptureFixture[str]
):
    assert list_printed_steps(seconds, steps, capsys) == expected


def test_a_log_has_every_event_that_has_a_line(capsys: pytest.CaptureFixture[str]):
    display = LineDisplay(FakeClock())
    display.show_event({"event": "loading", "base": "/m\x1b[2J"})
    display.show_event({"event": "counted"})
    display.show_event({"event": "stage", "stage": "sparse", "steps": 6})
    captured = capsys.readouterr()
    assert captured.err == "loading /m\\x1b[2J\nsparse stage, 6 steps\n"
    assert captured.out == ""


def test_a_loss_of_nan_does_not_stop_the_display(capsys: pytest.CaptureFixture[str]):
    display = LineDisplay(FakeClock())
    display.show_event(STARTED)
    display.show_step(step(1, loss=None))
    bar_display = BarDisplay()
    with bar_display.bar:
        bar_display.show_event(STARTED)
        bar_display.show_step(step(1, loss=None))
    assert "step 1/20 sparse: loss nan" in capsys.readouterr().err


def test_a_bar_counts_the_steps_and_prints_the_events(capsys: pytest.CaptureFixture[str]):
    display = BarDisplay()
    with display.bar:
        display.show_step(step(1))  # a resumed run may show a step before its plan
        display.show_event(STARTED)
        display.show_event({"event": "stage", "stage": "low-rank", "steps": 6})
        display.show_step(step(20, stage="low-rank"))
    output = capsys.readouterr().err
    assert "low-rank stage, 6 steps" in output and "20/20" in output


def test_without_a_terminal_lines_are_printed():
    with open_display() as display:
        assert isinstance(display, LineDisplay)


def test_a_run_is_followed_to_its_end_including_the_last_entries(runs: RunStore):
    def start() -> None:
        runs.events.append(STARTED)
        runs.metrics.append(step(1))

    def end() -> None:
        runs.metrics.append(step(2))
        runs.metrics.append({"step": 2, "evaluation": "end", "loss": 1.0})
        runs.events.append({"event": "published"})

    display = RecordingDisplay()
    follow_run(runs, display, ScriptedJob(start, lambda: None, end))
    assert display.events == ["started", "published"]
    assert display.steps == [1, 2]


def test_a_finished_run_is_shown_completely_and_once(runs: RunStore):
    for number in (1, 2, 3):
        runs.metrics.append(step(number))
    display = RecordingDisplay()
    follow_run(runs, display, lambda: False)
    assert (display.events, display.steps) == ([], [1, 2, 3])


def test_a_partial_line_is_shown_once_it_is_complete(runs: RunStore):
    path = runs.metrics.path

    def write_part() -> None:
        runs.metrics.append(step(1))
        with path.open("ab") as file:
            file.write(b'{"step": 2, "st')

    def write_rest() -> None:
        with path.open("ab") as file:
            file.write(b'age": "sparse"}\n')

    display = RecordingDisplay()
    follow_run(runs, display, ScriptedJob(write_part, write_rest))
    assert display.steps == [1, 2]
