"""Schedules: each moment fires once, with its run, whoever fires it and whatever breaks between."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import StoreUnreachable
from jobs.store.directory import DirectoryStore
from jobs.store.objects import open_store
from orchestrator.registry import runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild import rebuild
from orchestrator.registry.schedules import NewSchedule, Schedule
from orchestrator.registry.values import Run
from orchestrator.service.clock import SetClock
from orchestrator.service.cron import MOST_MISSED, offset_of
from orchestrator.service.intake import Intake
from orchestrator.service.new_data import mark_of
from orchestrator.service.observer import Observer
from orchestrator.service.scheduler import Scheduler, first_moment
from tests.orchestrator.registry.made import age_leases
from tests.orchestrator.service.made import spec_of

START = datetime.fromisoformat("2026-01-10T00:00:00+00:00").timestamp()
HOUR = 3600.0


class Desk:
    """A scheduler on a clock that is set by hand, and what came of it."""

    def __init__(self, database: Database, store: str) -> None:
        self.database, self.store = database, store
        self.clock = SetClock(START)
        self.marks: dict[str, str | None] = {}
        self.open: Callable[[str], Any] = open_store
        self.main = self.scheduler("a")

    def scheduler(
        self, holder: str, marked: Callable[[str], str | None] | None = None
    ) -> Scheduler:
        intake = Intake(self.database, [self.store], ["default"])
        return Scheduler(
            self.database,
            intake,
            self.clock,
            holder=holder,
            observer=Observer(),
            opened=lambda url: self.open(url),
            marked=marked or self.marks.get,
        )

    def add(self, name: str = "nightly", **changes: Any) -> Schedule:
        asked = {"cron": "0 * * * *", "kind": "finetune", "spec": spec_of(self.store), **changes}
        new = NewSchedule(name=name, **asked)
        offset = offset_of(new.project, name, new.jitter_s)
        next_at = first_moment(new.cron, new.time_zone, offset=offset, now=START)
        with self.database.write() as session:
            return schedules.add(session, new, next_at=next_at)

    def at(self, hours: float) -> int:
        self.clock.at = START + hours * HOUR
        return self.main.step()

    def outcomes(self, name: str = "nightly") -> list[str]:
        with self.database.read() as session:
            there = schedules.get(session, "default", name)
            return [one.outcome for one in reversed(schedules.firings(session, there))]

    def runs(self) -> list[Run]:
        with self.database.read() as session:
            return list(reversed(runs.page(session, limit=1000)))

    def end(self, run: Run, status: Status = Status.DONE) -> None:
        path = [Status.SUBMITTED, Status.PUBLISHING, status]
        with self.database.write() as session:
            for to in path:
                run = runs.move(session, run, to)


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Desk:
    return Desk(database, DirectoryStore(tmp_path / "store").url(""))


def test_a_moment_fires_once_and_the_next_one_follows(desk: Desk):
    desk.add(concurrency="queue")
    assert desk.at(0.9) == 0
    assert desk.at(1) == 1 and desk.at(1) == 0 and desk.at(1.5) == 0
    assert desk.at(2) == 1
    assert desk.outcomes() == ["run", "queued"] and len(desk.runs()) == 2


def test_the_run_of_a_firing_has_its_paper_in_the_store(desk: Desk):
    desk.add()
    desk.at(1)
    (run,) = desk.runs()
    assert run.id.startswith("chat-20260110-010000-") and run.status is Status.PLANNED
    assert open_store(desk.store).head(f"runs/{run.id}/request.json") is not None


def test_while_a_run_is_not_over_the_next_moment_is_skipped(desk: Desk):
    desk.add(concurrency="skip")
    desk.at(1), desk.at(2)
    desk.end(desk.runs()[0])
    desk.at(3)
    assert desk.outcomes() == ["run", "skipped", "run"] and len(desk.runs()) == 2


def test_a_moment_that_was_skipped_is_no_run_of_a_registry_that_is_rebuilt(desk: Desk):
    desk.add(concurrency="skip")
    desk.at(1), desk.at(2)
    before = [run.id for run in desk.runs()]
    rebuild(desk.database, open_store(desk.store))
    assert [run.id for run in desk.runs()] == before and len(before) == 1


def test_a_newer_firing_replaces_the_run_before(desk: Desk):
    desk.add(concurrency="replace")
    desk.at(1), desk.at(2)
    old, new = desk.runs()
    assert old.stop == Reason.REPLACED and new.stop is None
    assert desk.outcomes() == ["run", "queued"]


@pytest.mark.parametrize(
    ("missed", "fired"), [("all", ["run", *["queued"] * 4]), ("latest", ["run"]), ("skip", [])]
)
def test_moments_that_nobody_was_there_for(desk: Desk, missed: str, fired: list[str]):
    desk.add(concurrency="queue", missed=missed)
    desk.at(5.5)
    assert [one for one in desk.outcomes() if one != "skipped"] == fired
    with desk.database.read() as session:
        assert schedules.get(session, "default", "nightly").next_at == START + 6 * HOUR
    desk.at(6)
    assert len(desk.runs()) == len(fired) + 1


def test_of_more_moments_than_one_step_looks_at_the_latest_alone_fires(desk: Desk):
    there = desk.add(cron="* * * * *", concurrency="queue", missed="latest")
    desk.at(1.1 * MOST_MISSED / 60)
    desk.at(1.1 * MOST_MISSED / 60)
    with desk.database.read() as session:
        (one,) = schedules.firings(session, there)
    assert one.due_at == START + 1100 * 60 and len(desk.runs()) == 1


def test_nothing_new_starts_nothing(desk: Desk):
    desk.add(only_new_data=True)
    desk.at(1)
    desk.marks["/data/train.jsonl"] = "a" * 64
    desk.at(2)
    desk.end(desk.runs()[0])
    desk.at(3)
    desk.marks["/data/train.jsonl"] = "b" * 64
    desk.at(4)
    assert desk.outcomes() == ["nothing new", "run", "nothing new", "run"]


def test_new_data_that_came_while_a_run_was_at_work_is_not_forgotten(desk: Desk):
    desk.add(only_new_data=True)
    desk.marks["/data/train.jsonl"] = "a" * 64
    desk.at(1)
    desk.marks["/data/train.jsonl"] = "b" * 64
    desk.at(2)
    desk.end(desk.runs()[0])
    desk.at(3)
    assert desk.outcomes() == ["run", "skipped", "run"]


def test_a_paused_schedule_does_not_fire(desk: Desk):
    there = desk.add()
    with desk.database.write() as session:
        schedules.change(session, there, paused=True)
    assert desk.at(3) == 0


def test_an_offset_moves_every_moment_by_the_same(desk: Desk):
    there = desk.add(jitter_s=600.0, missed="all", concurrency="queue")
    first = there.next_at
    assert first is not None and 0 < first % HOUR < 600
    desk.at(4)
    with desk.database.read() as session:
        due = [one.due_at for one in schedules.firings(session, there)]
    assert due == [first + hours * HOUR for hours in range(len(due))][::-1] and len(due) == 4


def test_a_schedule_whose_spec_is_refused_now_says_so_and_goes_on(desk: Desk):
    desk.add(cluster="gone")
    desk.at(1), desk.at(2)
    assert desk.outcomes() == ["refused", "refused"] and desk.runs() == []


def test_a_schedule_whose_data_can_lie_nowhere_holds_up_no_other(desk: Desk):
    def marked(where: str) -> str | None:
        return mark_of("s3:///nowhere") if "wrong" in where else "a" * 64

    desk.main = desk.scheduler("a", marked)
    wrong = {**spec_of(desk.store), "data": {"train": "/wrong.jsonl", "max_length": 64}}
    desk.add("wrong", only_new_data=True, spec=wrong, cron="30 0 * * *")
    desk.add(only_new_data=True)
    assert desk.at(1) == 2
    assert desk.outcomes("wrong") == ["refused"] and desk.outcomes() == ["run"]


def test_a_store_that_is_away_costs_no_moment(desk: Desk):
    desk.add()

    def away(url: str) -> Any:
        raise StoreUnreachable("the store is away")

    desk.open = away
    assert desk.at(1) == 0 and desk.outcomes() == []
    desk.open = open_store
    assert desk.at(1.01) == 1 and desk.outcomes() == ["run"]


def test_of_two_schedulers_one_fires_and_the_other_goes_on_after_it(desk: Desk):
    desk.add(concurrency="queue")
    other = desk.scheduler("b")
    desk.at(1)
    desk.clock.at = START + 2 * HOUR
    assert other.step() == 0
    age_leases(desk.database, 60)
    assert other.step() == 1
    assert desk.outcomes() == ["run", "queued"]


def test_one_that_slept_through_its_lease_fires_nothing(desk: Desk):
    desk.add(concurrency="queue")
    desk.at(0.5)
    age_leases(desk.database, 60)
    other = desk.scheduler("b")
    desk.clock.at = START + HOUR
    assert other.step() == 1
    assert desk.main.step() == 0 and len(desk.runs()) == 1


def test_a_firing_that_died_after_its_paper_is_made_whole_by_the_next(desk: Desk):
    desk.add()
    desk.at(1)
    (run,) = desk.runs()
    # As if it had died when only the paper was written: neither its run nor its firing is there.
    with desk.database.write() as session:
        session.execute(text("DELETE FROM firings"))
        session.execute(text("DELETE FROM events"))
        session.execute(text("DELETE FROM runs"))
        session.execute(text("UPDATE schedules SET next_at = :at"), {"at": START + HOUR})
    assert desk.at(1) == 1 and [one.id for one in desk.runs()] == [run.id]
    assert desk.outcomes() == ["run"]
