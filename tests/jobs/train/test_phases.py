"""The phases of a run's start: they sum to the wait, whatever clocks say and anybody writes."""

from __future__ import annotations

import json
import math
import pickle
import time
from typing import Any

import pytest

from jobs.spec.run_arguments import make_run_parser
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from jobs.train.monitor import group_marks
from jobs.train.monitor.group_marks import GroupMarks, begin_worker_phases
from jobs.train.monitor.phases import (
    MAX_STARTS,
    PHASES,
    PhaseClock,
    PhaseStart,
    begin_job_phases,
    collect_starts,
    describe_start,
    find_process_start,
)

T0 = 1_796_000_000.0


class ListJournal(list[dict[str, Any]]):
    """Events in memory, as they would be read back."""

    def append(self, event: Any) -> None:
        super().append(json.loads(json.dumps(event)))


def read_phases(journal: ListJournal) -> list[tuple[str, float]]:
    return [(event["phase"], event["seconds"]) for event in journal]


def test_each_phase_begins_where_the_last_ended_and_they_sum_to_the_wait():
    journal, times = ListJournal(), iter([T0 + 1.5, T0 + 1.75, T0 + 5.0])
    clock = PhaseClock(journal, PhaseStart.begin(2, T0), clock=lambda: next(times))
    for phase in ("queue", "base", "first_step"):
        clock.end(phase)
    assert read_phases(journal) == [("queue", 1.5), ("base", 0.25), ("first_step", 3.25)]
    ends = [event["started"] + event["seconds"] for event in journal]
    assert [event["started"] for event in journal] == [T0, *ends[:-1]] == sorted([T0, *ends[:-1]])
    [start] = collect_starts(journal)
    assert (start.attempt, start.since, start.wait_s, start.is_complete) == (2, T0, 5.0, True)
    assert describe_start(start).startswith("5.0 s to the end of the first step: queue 1.5")


def test_nothing_is_recorded_after_the_first_step():
    journal = ListJournal()
    clock = PhaseClock(journal, PhaseStart.begin(0, T0), clock=lambda: T0 + 1)
    clock.end("first_step")
    clock.end("compile")
    PhaseClock(journal, pickle.loads(pickle.dumps(clock.start))).end("evaluation")
    assert read_phases(journal) == [("first_step", 1.0)]


def test_a_name_that_is_no_phase_is_an_error():
    with pytest.raises(ValueError, match="'warming' is not a phase"):
        PhaseClock(ListJournal(), PhaseStart.begin(0, T0)).end("warming")


def test_a_clock_that_is_behind_counts_zero_and_the_sum_stays_the_wait():
    journal, times = ListJournal(), iter([T0 + 4, T0 - 60, T0 + 3, T0 + 6])
    clock = PhaseClock(journal, PhaseStart.begin(0, T0), clock=lambda: next(times))
    for phase in ("placement", "processes", "imports", "first_step"):
        clock.end(phase)
    assert [seconds for _, seconds in read_phases(journal)] == [4.0, 0.0, 0.0, 2.0]
    assert collect_starts(journal)[0].wait_s == 6.0


def test_a_jobs_first_phases_end_before_its_process_started():
    process = find_process_start()
    assert 0 <= time.time() - process < 3600
    journal = ListJournal()
    clock = begin_job_phases(journal, 1, submitted=process - 5, checked=process - 2)
    assert [phase for phase, _ in read_phases(journal)] == ["check", "queue"]
    assert [seconds for _, seconds in read_phases(journal)] == pytest.approx([3, 2], abs=0.1)
    assert clock.start.since == pytest.approx(process - 5, abs=0.1)


def test_a_submission_that_another_clock_puts_into_the_future_waits_zero_seconds():
    journal = ListJournal()
    begin_job_phases(journal, 1, submitted=time.time() + 900, checked=time.time() + 1000)
    assert [seconds for _, seconds in read_phases(journal)] == [0.0, 0.0]


def test_a_job_that_nobody_submitted_waits_from_the_start_of_its_process():
    journal = ListJournal()
    clock = begin_job_phases(journal, 0, submitted=None, checked=None)
    assert journal == [] and clock.start.since <= time.time()


@pytest.mark.parametrize("text", ["nan", "-1", "inf", "1e300", "yesterday"])
def test_a_time_that_is_none_is_refused_as_an_argument(text: str, capsys):
    with pytest.raises(SystemExit) as refused:
        make_run_parser("jobs.finetune", "").parse_args(["--spec", "a", f"--submitted={text}"])
    assert refused.value.code == 2 and "--submitted" in capsys.readouterr().err


def test_workers_begin_where_the_driver_ended_and_restarted_ones_have_a_start_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
):
    journal, driver = ListJournal(), PhaseStart(T0, T0 + 2, 1)
    first = GroupMarks(launch=0, started=T0 + 3, placed=T0 + 4)
    monkeypatch.setattr(group_marks._ProcessMarks, "marks", first)
    start = begin_worker_phases(journal, driver)
    assert read_phases(journal)[0] == ("placement", 2.0) and start.since == T0
    again = GroupMarks(launch=1, started=T0 + 500, placed=T0 + 507)
    monkeypatch.setattr(group_marks._ProcessMarks, "marks", again)
    begin_worker_phases(journal, driver)
    starts = collect_starts(journal)
    assert [start.since for start in starts] == [T0, T0 + 500]
    assert starts[1].phases["placement"] == 7.0


GOOD = {"event": "phase_ended", "phase": "base", "seconds": 2.0, "attempt": 1, "since": T0}


@pytest.mark.parametrize(
    "changes",
    [
        *({"seconds": value} for value in (None, "2", math.nan, -1.0, 1e30, 10**400, True, [2])),
        *({"since": value} for value in (None, {}, -5, math.inf)),
        *({"attempt": value} for value in (None, "1", -1, 1.5, 10**9, False)),
        *({"phase": value} for value in (None, 7, "first step", ["base"], "x" * 10**6)),
    ],
    ids=lambda change: str(change)[:40],
)
def test_an_event_that_is_no_phase_is_left_out(changes: dict[str, Any]):
    starts = collect_starts([GOOD | changes, GOOD, {"event": "phase_ended"}, {}])
    assert [(start.attempt, start.phases) for start in starts] == [(1, {"base": 2.0})]


def test_a_flood_of_starts_is_bounded_and_the_newest_are_kept():
    starts = collect_starts(GOOD | {"since": float(number)} for number in range(5 * MAX_STARTS))
    assert len(starts) == MAX_STARTS and starts[-1].since == 5 * MAX_STARTS - 1


def test_phases_are_in_the_order_of_the_start_and_a_repeated_one_is_summed():
    phases = ["imports", "check", "queue", "check"]
    [start] = collect_starts(GOOD | {"phase": phase} for phase in phases)
    assert list(start.phases) == [name for name in PHASES if name in phases]
    assert start.phases["check"] == 4.0 and not start.is_complete


def test_a_journal_of_phases_survives_the_store(tmp_path):
    runs = RunStore(DirectoryStore(tmp_path), "run")
    PhaseClock(runs.events, PhaseStart.begin(0, T0), clock=lambda: T0 + 2).end("queue")
    assert collect_starts(runs.events.tail(0)[0])[0].phases == {"queue": 2.0}
