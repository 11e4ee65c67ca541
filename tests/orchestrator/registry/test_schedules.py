"""Schedules on both databases: each moment fires once, whoever tries and whenever they die."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier

import pytest
from pydantic import ValidationError
from sqlalchemy.orm import Session

from orchestrator.registry import leases, runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DuplicateKey, LeaseLost, LostUpdate, UnknownItem
from orchestrator.registry.schedules import NewSchedule, Schedule
from tests.jobs.store.builders import race
from tests.orchestrator.registry.builders import age_leases, make_request, read_rows

RACERS = 4


def make_schedule(**changes: object) -> NewSchedule:
    return NewSchedule(
        **{"name": "nightly", "cron": "0 3 * * *", "spec": {"name": "chat"}, **changes}
    )


def add_schedule(database: Database, **changes: object) -> Schedule:
    with database.write() as session:
        return schedules.add(session, make_schedule(**changes), next_at=100.0)


def fire(session: Session, schedule: Schedule, due_at: float) -> Schedule:
    """Record a firing and the run that it starts, in one transaction."""
    run = runs.add(session, f"chat-{due_at:.0f}", make_request())
    return schedules.fire(
        session, schedule, due_at=due_at, next_at=due_at + 100, outcome="run", run=run.id
    )


def test_a_schedule_is_read_as_it_was_added(database: Database):
    schedule = add_schedule(database, time_zone="Europe/Paris", jitter_s=5.0, concurrency="replace")
    with database.read() as session:
        assert schedules.get(session, "default", "nightly") == schedule
    assert (schedule.time_zone, schedule.jitter_s, schedule.concurrency) == (
        "Europe/Paris",
        5.0,
        "replace",
    )
    assert dict(schedule.spec) == {"name": "chat"}


def test_a_name_is_unique_in_a_project(database: Database):
    add_schedule(database)
    add_schedule(database, project="lab")
    with database.write() as session, pytest.raises(DuplicateKey):
        schedules.add(session, make_schedule(), next_at=None)
    with database.read() as session, pytest.raises(UnknownItem):
        schedules.get(session, "lab", "hourly")


def test_due_schedules_are_listed_by_the_clock_of_the_database_unless_paused(database: Database):
    schedule = add_schedule(database)
    add_schedule(database, name="later")
    with database.write() as session:
        later = schedules.get(session, "default", "later")
        schedules.update_schedule(session, later, next_at=1e11)
    with database.write() as session:
        assert [due.name for due in schedules.list_due(session)] == ["nightly"]
        schedules.update_schedule(session, schedule, paused=True)
        assert schedules.list_due(session) == []


def test_a_due_time_fires_once_and_sets_the_next_one(database: Database):
    schedule = add_schedule(database)
    with database.write() as session:
        after = fire(session, schedule, 100.0)
    assert (after.next_at, after.revision) == (200.0, schedule.revision + 1)
    with database.read() as session:
        (firing,) = schedules.list_firings(session, schedule)
    assert (firing.due_at, firing.outcome, firing.run) == (100.0, "run", "chat-100")
    with database.write() as session, pytest.raises(DuplicateKey, match="firing"):
        schedules.fire(session, after, due_at=100.0, next_at=300.0, outcome="skipped")


def test_a_scheduler_with_a_stale_schedule_starts_nothing(database: Database):
    stale = add_schedule(database)
    with database.write() as session:
        schedules.update_schedule(session, stale, paused=True)
    with pytest.raises(LostUpdate), database.write() as session:
        fire(session, stale, 100.0)
    assert read_rows(database, "runs") == read_rows(database, "firings") == []


def test_a_scheduler_that_lost_its_lease_starts_nothing(database: Database):
    schedule = add_schedule(database)
    with database.write() as session:
        lease = leases.acquire(session, "scheduler", "a", seconds=60)
    age_leases(database, 61)
    with pytest.raises(LeaseLost), database.write() as session:
        schedules.fire(
            session, schedule, due_at=100.0, next_at=None, outcome="no_new_data", lease=lease
        )
    assert read_rows(database, "firings") == []


def _fire(start: Barrier, mine: int, url: str) -> None:
    database = Database(url)
    with database.read() as session:
        schedule = schedules.get(session, "default", "nightly")
    start.wait()
    try:
        with database.write() as session:
            schedules.fire(session, schedule, due_at=100.0, next_at=200.0, outcome="skipped")
    except (DuplicateKey, LostUpdate):
        raise SystemExit(7) from None


def test_one_of_several_schedulers_fires(database: Database, url: str):
    add_schedule(database)
    codes = race(_fire, url, count=RACERS)
    assert sorted(codes, key=str) == [0] + [7] * (RACERS - 1)
    assert len(read_rows(database, "firings")) == 1


def test_removing_a_schedule_deletes_its_firings_and_not_its_runs(database: Database):
    schedule = add_schedule(database)
    with database.write() as session:
        fire(session, schedule, 100.0)
    with pytest.raises(LostUpdate), database.write() as session:
        schedules.remove(session, schedule)
    with database.write() as session:
        schedules.remove(session, schedules.get(session, "default", "nightly"))
    assert read_rows(database, "schedules") == read_rows(database, "firings") == []
    assert len(read_rows(database, "runs")) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a b"},
        {"cron": "0 3 * * *\n"},
        {"cron": ""},
        {"time_zone": "../../etc/passwd"},
        {"concurrency": "all"},
        {"missed": "never"},
        {"jitter_s": -1.0},
        {"jitter_s": float("nan")},
        {"more": 1},
    ],
    ids=str,
)
def test_an_invalid_schedule_is_refused(changes: dict[str, object]):
    with pytest.raises(ValidationError):
        make_schedule(**changes)
