"""A run followed by its journals: what is shown, how often, and that nothing is left out."""

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
    make_display,
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


class Listing:
    """A teller that keeps what it is told."""

    def __init__(self) -> None:
        self.events, self.steps = list[Any](), list[int]()

    def show_event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event["event"])

    def show_step(self, metric: Mapping[str, Any]) -> None:
        self.steps.append(metric["step"])


class Alive:
    """Answers as told; before each answer the run goes on by one script's part."""

    def __init__(self, *parts: Any) -> None:
        self._parts = list(parts)

    def __call__(self) -> bool:
        self._parts.pop(0)()
        return bool(self._parts)


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(DirectoryStore(tmp_path), "chat-20260101-120000-0a1b")


def told_steps(
    seconds: Iterable[float], steps: int, capsys: pytest.CaptureFixture[str]
) -> list[int]:
    """The steps about which there was a line, each step `seconds` after the one before."""
    clock = FakeClock()
    line_teller = LineDisplay(clock)
    line_teller.show_event(STARTED | {"steps": steps})
    capsys.readouterr()
    for number, waited in enumerate(seconds, start=1):
        clock.now += waited
        line_teller.show_step(step(number))
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


@pytest.mark.parametrize(("seconds", "steps", "wanted"), PACES.values(), ids=PACES)
def test_a_log_has_a_step_line_each_five_seconds_and_always_the_last(
    seconds: list[float], steps: int, wanted: list[int], capsys: pytest.CaptureFixture[str]
):
    assert told_steps(seconds, steps, capsys) == wanted


def test_a_log_has_every_event_that_has_a_line(capsys: pytest.CaptureFixture[str]):
    with LineDisplay(FakeClock()) as line_teller:
        line_teller.show_event({"event": "loading", "base": "/m\x1b[2J"})
        line_teller.show_event({"event": "counted"})
        line_teller.show_event({"event": "stage", "stage": "sparse", "steps": 6})
    captured = capsys.readouterr()
    assert captured.err == "loading /m\\x1b[2J\nsparse stage, 6 steps\n"
    assert captured.out == ""


def test_a_loss_that_is_no_number_stops_nobody_from_following(capsys: pytest.CaptureFixture[str]):
    line_teller = LineDisplay(FakeClock())
    line_teller.show_event(STARTED)
    line_teller.show_step(step(1, loss=None))
    with BarDisplay() as bar:
        bar.show_event(STARTED)
        bar.show_step(step(1, loss=None))
    assert "step 1/20 sparse: loss nan" in capsys.readouterr().err


def test_a_bar_counts_the_steps_and_prints_the_events(capsys: pytest.CaptureFixture[str]):
    with BarDisplay() as bar:
        bar.show_step(step(1))  # a run that goes on may show a step before its plan
        bar.show_event(STARTED)
        bar.show_event({"event": "stage", "stage": "low-rank", "steps": 6})
        bar.show_step(step(20, stage="low-rank"))
    shown = capsys.readouterr().err
    assert "low-rank stage, 6 steps" in shown and "20/20" in shown


def test_where_there_is_no_terminal_there_are_lines():
    assert isinstance(make_display(), LineDisplay)


def test_a_run_is_followed_to_its_end_with_what_came_after_the_last_look(runs: RunStore):
    def begun() -> None:
        runs.events.append(STARTED)
        runs.metrics.append(step(1))

    def ended() -> None:
        runs.metrics.append(step(2))
        runs.metrics.append({"step": 2, "evaluation": "end", "loss": 1.0})
        runs.events.append({"event": "published"})

    listing = Listing()
    follow_run(runs, listing, Alive(begun, lambda: None, ended))
    assert listing.events == ["started", "published"]
    assert listing.steps == [1, 2]


def test_a_run_that_is_over_is_told_whole_and_once(runs: RunStore):
    for number in (1, 2, 3):
        runs.metrics.append(step(number))
    listing = Listing()
    follow_run(runs, listing, lambda: False)
    assert (listing.events, listing.steps) == ([], [1, 2, 3])


def test_a_line_that_is_still_being_written_is_told_when_it_is_whole(runs: RunStore):
    path = runs.metrics.path

    def torn() -> None:
        runs.metrics.append(step(1))
        with path.open("ab") as file:
            file.write(b'{"step": 2, "st')

    def mended() -> None:
        with path.open("ab") as file:
            file.write(b'age": "sparse"}\n')

    listing = Listing()
    follow_run(runs, listing, Alive(torn, mended))
    assert listing.steps == [1, 2]
