"""Schedules: each moment fires once, with its run, whoever fires it and whatever breaks between."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import StoreUnreachable
from jobs.store.local import DirectoryStore
from jobs.store.open import open_store
from orchestrator.control.clock import SettableClock
from orchestrator.control.cron import MAX_MISSED_TIMES, compute_jitter_offset
from orchestrator.control.intake import Intake
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.new_data import compute_data_fingerprint
from orchestrator.control.scheduler import Scheduler, find_first_time
from orchestrator.registry import runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.schedules import NewSchedule, Schedule
from orchestrator.registry.values import Run
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.registry.builders import age_leases

START = datetime.fromisoformat("2026-01-10T00:00:00+00:00").timestamp()
HOUR = 3600.0


class SchedulerHarness:
    """A scheduler on a clock that is set by hand, and what came of it."""

    def __init__(self, database: Database, store: str) -> None:
        self.database, self.store = database, store
        self.clock = SettableClock(START)
        self.marks: dict[str, str | None] = {}
        self.open: Callable[[str], Any] = open_store
        self.main = self.make_scheduler("a")

    def make_scheduler(
        self, holder: str, marked: Callable[[str], str | None] | None = None
    ) -> Scheduler:
        intake = Intake(self.database, [self.store], ["default"])
        return Scheduler(
            self.database,
            intake,
            self.clock,
            holder=holder,
            metrics=ServiceMetrics(),
            store_opener=lambda url: self.open(url),
            fingerprinter=marked or self.marks.get,
        )

    def add(self, name: str = "nightly", **changes: Any) -> Schedule:
        asked = {"cron": "0 * * * *", "kind": "finetune", "spec": make_spec(self.store), **changes}
        new = NewSchedule(name=name, **asked)
        offset = compute_jitter_offset(new.project, name, new.jitter_s)
        next_at = find_first_time(new.cron, new.time_zone, offset=offset, now=START)
        with self.database.write() as session:
            return schedules.add(session, new, next_at=next_at)

    def fire_at(self, hours: float) -> int:
        self.clock.at = START + hours * HOUR
        return self.main.fire_due()

    def list_outcomes(self, name: str = "nightly") -> list[str]:
        with self.database.read() as session:
            there = schedules.get(session, "default", name)
            return [one.outcome for one in reversed(schedules.list_firings(session, there))]

    def list_runs(self) -> list[Run]:
        with self.database.read() as session:
            return list(reversed(runs.list_page(session, limit=1000)))

    def finish(self, run: Run, status: Status = Status.DONE) -> None:
        path = [Status.SUBMITTED, Status.PUBLISHING, status]
        with self.database.write() as session:
            for to in path:
                run = runs.move(session, run, to)


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> SchedulerHarness:
    return SchedulerHarness(database, DirectoryStore(tmp_path / "store").url(""))


def test_a_moment_fires_once_and_the_next_one_follows(desk: SchedulerHarness):
    desk.add(concurrency="queue")
    assert desk.fire_at(0.9) == 0
    assert desk.fire_at(1) == 1 and desk.fire_at(1) == 0 and desk.fire_at(1.5) == 0
    assert desk.fire_at(2) == 1
    assert desk.list_outcomes() == ["run", "queued"] and len(desk.list_runs()) == 2


def test_the_run_of_a_firing_has_its_paper_in_the_store(desk: SchedulerHarness):
    desk.add()
    desk.fire_at(1)
    (run,) = desk.list_runs()
    assert run.id.startswith("chat-20260110-010000-") and run.status is Status.PLANNED
    assert open_store(desk.store).head(f"runs/{run.id}/request.json") is not None


def test_while_a_run_is_not_over_the_next_moment_is_skipped(desk: SchedulerHarness):
    desk.add(concurrency="skip")
    desk.fire_at(1), desk.fire_at(2)
    desk.finish(desk.list_runs()[0])
    desk.fire_at(3)
    assert desk.list_outcomes() == ["run", "skipped", "run"] and len(desk.list_runs()) == 2


def test_a_moment_that_was_skipped_is_no_run_of_a_registry_that_is_rebuilt(desk: SchedulerHarness):
    desk.add(concurrency="skip")
    desk.fire_at(1), desk.fire_at(2)
    before = [run.id for run in desk.list_runs()]
    rebuild(desk.database, open_store(desk.store))
    assert [run.id for run in desk.list_runs()] == before and len(before) == 1


def test_a_newer_firing_replaces_the_run_before(desk: SchedulerHarness):
    desk.add(concurrency="replace")
    desk.fire_at(1), desk.fire_at(2)
    old, new = desk.list_runs()
    assert old.stop == Reason.REPLACED and new.stop is None
    assert desk.list_outcomes() == ["run", "queued"]


@pytest.mark.parametrize(
    ("missed", "fired"), [("all", ["run", *["queued"] * 4]), ("latest", ["run"]), ("skip", [])]
)
def test_moments_that_nobody_was_there_for(desk: SchedulerHarness, missed: str, fired: list[str]):
    desk.add(concurrency="queue", missed=missed)
    desk.fire_at(5.5)
    assert [one for one in desk.list_outcomes() if one != "skipped"] == fired
    with desk.database.read() as session:
        assert schedules.get(session, "default", "nightly").next_at == START + 6 * HOUR
    desk.fire_at(6)
    assert len(desk.list_runs()) == len(fired) + 1


def test_of_more_moments_than_one_step_looks_at_the_latest_alone_fires(desk: SchedulerHarness):
    there = desk.add(cron="* * * * *", concurrency="queue", missed="latest")
    desk.fire_at(1.1 * MAX_MISSED_TIMES / 60)
    desk.fire_at(1.1 * MAX_MISSED_TIMES / 60)
    with desk.database.read() as session:
        (one,) = schedules.list_firings(session, there)
    assert one.due_at == START + 1100 * 60 and len(desk.list_runs()) == 1


def test_nothing_new_starts_nothing(desk: SchedulerHarness):
    desk.add(only_new_data=True)
    desk.fire_at(1)
    desk.marks["/data/train.jsonl"] = "a" * 64
    desk.fire_at(2)
    desk.finish(desk.list_runs()[0])
    desk.fire_at(3)
    desk.marks["/data/train.jsonl"] = "b" * 64
    desk.fire_at(4)
    assert desk.list_outcomes() == ["nothing new", "run", "nothing new", "run"]


def test_new_data_that_came_while_a_run_was_at_work_is_not_forgotten(desk: SchedulerHarness):
    desk.add(only_new_data=True)
    desk.marks["/data/train.jsonl"] = "a" * 64
    desk.fire_at(1)
    desk.marks["/data/train.jsonl"] = "b" * 64
    desk.fire_at(2)
    desk.finish(desk.list_runs()[0])
    desk.fire_at(3)
    assert desk.list_outcomes() == ["run", "skipped", "run"]


def test_a_paused_schedule_does_not_fire(desk: SchedulerHarness):
    there = desk.add()
    with desk.database.write() as session:
        schedules.update_schedule(session, there, paused=True)
    assert desk.fire_at(3) == 0


def test_an_offset_moves_every_moment_by_the_same(desk: SchedulerHarness):
    there = desk.add(jitter_s=600.0, missed="all", concurrency="queue")
    first = there.next_at
    assert first is not None and 0 < first % HOUR < 600
    desk.fire_at(4)
    with desk.database.read() as session:
        due = [one.due_at for one in schedules.list_firings(session, there)]
    assert due == [first + hours * HOUR for hours in range(len(due))][::-1] and len(due) == 4


def test_a_schedule_whose_spec_is_refused_now_says_so_and_goes_on(desk: SchedulerHarness):
    desk.add(cluster="gone")
    desk.fire_at(1), desk.fire_at(2)
    assert desk.list_outcomes() == ["refused", "refused"] and desk.list_runs() == []


def test_a_schedule_whose_data_can_lie_nowhere_holds_up_no_other(desk: SchedulerHarness):
    def marked(where: str) -> str | None:
        return compute_data_fingerprint("s3:///nowhere") if "wrong" in where else "a" * 64

    desk.main = desk.make_scheduler("a", marked)
    wrong = {**make_spec(desk.store), "data": {"train": "/wrong.jsonl", "max_length": 64}}
    desk.add("wrong", only_new_data=True, spec=wrong, cron="30 0 * * *")
    desk.add(only_new_data=True)
    assert desk.fire_at(1) == 2
    assert desk.list_outcomes("wrong") == ["refused"] and desk.list_outcomes() == ["run"]


def test_a_store_that_is_away_costs_no_moment(desk: SchedulerHarness):
    desk.add()

    def away(url: str) -> Any:
        raise StoreUnreachable("the store is away")

    desk.open = away
    assert desk.fire_at(1) == 0 and desk.list_outcomes() == []
    desk.open = open_store
    assert desk.fire_at(1.01) == 1 and desk.list_outcomes() == ["run"]


def test_of_two_schedulers_one_fires_and_the_other_goes_on_after_it(desk: SchedulerHarness):
    desk.add(concurrency="queue")
    other = desk.make_scheduler("b")
    desk.fire_at(1)
    desk.clock.at = START + 2 * HOUR
    assert other.fire_due() == 0
    age_leases(desk.database, 60)
    assert other.fire_due() == 1
    assert desk.list_outcomes() == ["run", "queued"]


def test_one_that_slept_through_its_lease_fires_nothing(desk: SchedulerHarness):
    desk.add(concurrency="queue")
    desk.fire_at(0.5)
    age_leases(desk.database, 60)
    other = desk.make_scheduler("b")
    desk.clock.at = START + HOUR
    assert other.fire_due() == 1
    assert desk.main.fire_due() == 0 and len(desk.list_runs()) == 1


def test_a_firing_that_died_after_its_paper_is_made_whole_by_the_next(desk: SchedulerHarness):
    desk.add()
    desk.fire_at(1)
    (run,) = desk.list_runs()
    # As if it had died when only the paper was written: neither its run nor its firing is there.
    with desk.database.write() as session:
        session.execute(text("DELETE FROM firings"))
        session.execute(text("DELETE FROM events"))
        session.execute(text("DELETE FROM runs"))
        session.execute(text("UPDATE schedules SET next_at = :at"), {"at": START + HOUR})
    assert desk.fire_at(1) == 1 and [one.id for one in desk.list_runs()] == [run.id]
    assert desk.list_outcomes() == ["run"]
