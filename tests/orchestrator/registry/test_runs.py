"""Runs on both databases: added once, moved by guarded updates, listed by page."""

from __future__ import annotations

import threading
from multiprocessing.synchronize import Barrier

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.orm import Session

from jobs.errors import InputError
from orchestrator.registry import projects, runs, usage
from orchestrator.registry.database import Database
from orchestrator.registry.errors import (
    DatabaseRefused,
    DuplicateKey,
    LostUpdate,
    UnknownItem,
)
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import ProjectLimits
from tests.jobs.store.builders import race
from tests.orchestrator.registry.builders import (
    TO_RUNNING,
    add_run,
    list_runs,
    make_request,
    move_run,
    read_rows,
)

RACERS = 4


def test_a_run_is_read_as_it_was_added(database: Database):
    run = add_run(database, workers=8, priority=3, spec_sha256="a" * 64, project="lab")
    with database.read() as session:
        assert runs.get(session, "r1") == run
    assert (run.status, run.attempt, run.revision) == (Status.PLANNED, 0, 1)
    assert (run.project, run.workers, run.priority, run.search) == ("lab", 8, 3, None)
    assert run.created_at > 1.7e9


def test_an_id_is_unique(database: Database):
    add_run(database)
    with (
        database.write() as session,
        pytest.raises(DuplicateKey, match="'r1' already exists"),
    ):
        runs.add(session, "r1", make_request())
    assert len(read_rows(database, "runs")) == len(read_rows(database, "events")) == 1


def test_an_unknown_run_is_named(database: Database):
    with database.read() as session, pytest.raises(UnknownItem, match="run 'nobody'"):
        runs.get(session, "nobody")


def test_an_attempt_begins_with_each_submission_and_ends_with_it(database: Database):
    run = move_run(database, add_run(database), *TO_RUNNING, Status.LOST, reason=Reason.JOB_ABSENT)
    run = move_run(database, run, Status.PLANNED, *TO_RUNNING, Status.PUBLISHING, Status.DONE)
    with database.read() as session:
        first, second = runs.list_attempts(session, "r1")
    assert (first.submission, second.submission) == ("r1-a1", "r1-a2") != run.submission
    assert run.submission == "r1-a2"
    assert (first.status, first.reason) == (Status.LOST, Reason.JOB_ABSENT)
    assert (second.status, second.reason) == (Status.DONE, None)
    assert first.ended_at and second.ended_at and first.created_at <= first.ended_at


def test_a_job_that_reappears_continues_its_attempt(database: Database):
    lost = move_run(database, add_run(database), *TO_RUNNING, Status.LOST, reason=Reason.JOB_ABSENT)
    resumed = move_run(database, lost, Status.RUNNING)
    with database.read() as session:
        (attempt,) = runs.list_attempts(session, "r1")
    assert resumed.attempt == 1 and resumed.reason is None
    assert (attempt.status, attempt.reason, attempt.ended_at) == (Status.RUNNING, None, None)


def test_stopping_a_planned_run_does_not_change_its_last_attempt(database: Database):
    lost = move_run(database, add_run(database), *TO_RUNNING, Status.LOST, reason=Reason.PREEMPTED)
    move_run(database, lost, Status.PLANNED, Status.STOPPED, reason=Reason.USER)
    with database.read() as session:
        (attempt,) = runs.list_attempts(session, "r1")
    assert (attempt.status, attempt.reason) == (Status.LOST, Reason.PREEMPTED)


def test_an_update_of_a_changed_run_is_refused_and_writes_nothing(database: Database):
    stale = add_run(database)
    move_run(database, stale, Status.SUBMITTED)
    before = read_rows(database, "runs"), read_rows(database, "events")
    with pytest.raises(LostUpdate, match="it is at version 2, not 1"):
        move_run(database, stale, Status.STOPPED, reason=Reason.USER)
    assert (read_rows(database, "runs"), read_rows(database, "events")) == before


def test_a_failed_transaction_writes_nothing(database: Database):
    def half(session: Session) -> None:
        runs.move(session, runs.add(session, "r1", make_request()), Status.SUBMITTED)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), database.write() as session:
        half(session)
    assert read_rows(database, "runs") == read_rows(database, "attempts") == []


def _move(start: Barrier, mine: int, url: str) -> None:
    database = Database(url)
    with database.read() as session:
        run = runs.get(session, "r1")
    start.wait()
    try:
        with database.write() as session:
            runs.move(session, run, Status.FAILED, reason=Reason.CRASHED, detail=f"of {mine}")
    except LostUpdate:
        raise SystemExit(7) from None


def test_one_of_several_processes_moves_a_run(database: Database, url: str):
    move_run(database, add_run(database), *TO_RUNNING)
    codes = race(_move, url, count=RACERS)
    assert sorted(codes, key=str) == [0] + [7] * (RACERS - 1)
    with database.read() as session:
        run, events = runs.get(session, "r1"), runs.list_events(session, "r1")
    assert run.detail == f"of {codes.index(0)}"
    assert (run.revision, len(events)) == (4, 4)


def test_retried_lost_updates_lose_no_change(database: Database):
    with database.write() as session:
        projects.ensure_project(session, "lab")

    def increment_limit(times: int) -> None:
        while times:
            try:
                with database.write() as session:
                    project = projects.get(session, "lab")
                    limits = ProjectLimits(max_runs=(project.max_runs or 0) + 1)
                    projects.set_limits(session, project, limits)
                times -= 1
            except LostUpdate:
                continue

    threads = [threading.Thread(target=increment_limit, args=(10,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert projects.get(session, "lab").max_runs == 40


def _add(start: Barrier, mine: int, url: str) -> None:
    database = Database(url)
    start.wait()
    try:
        with database.write() as session:
            runs.add(session, "r1", make_request(workers=mine + 1))
    except DuplicateKey:
        raise SystemExit(7) from None


def test_one_of_several_processes_adds_an_id(database: Database, url: str):
    codes = race(_add, url, count=RACERS)
    assert sorted(codes, key=str) == [0] + [7] * (RACERS - 1)
    (row,) = read_rows(database, "runs")
    assert row["workers"] == codes.index(0) + 1


def test_pages_return_every_run_once_newest_first(database: Database):
    for number in range(7):
        add_run(database, f"r{number}", project="lab" if number % 2 else "default")
    ids: list[str] = []
    with database.read() as session:
        page = list_runs(session, limit=3)
        while page:
            ids += [run.id for run in page]
            page = list_runs(session, limit=3, after=page[-1])
        lab = [run.id for run in list_runs(session, project="lab")]
    assert ids == [f"r{number}" for number in reversed(range(7))]
    assert lab == ["r5", "r3", "r1"]


def test_ready_runs_are_listed_by_priority_and_then_by_age(database: Database):
    for run_id, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        add_run(database, run_id, priority=priority)
    with database.read() as session:
        run = runs.get(session, "b")
    move_run(database, run, Status.SUBMITTED)
    with database.read() as session:
        assert [run.id for run in usage.list_ready_runs(session, "default")] == ["d", "a", "c"]
        assert [run.id for run in list_runs(session, status=Status.SUBMITTED)] == ["b"]


def test_a_reader_of_events_resumes_at_its_position(database: Database):
    run = move_run(database, add_run(database), *TO_RUNNING)
    with database.read() as session:
        first = runs.list_events(session, "r1", limit=2)
        rest = runs.list_events(session, "r1", after=first[-1].position)
    assert [event.kind for event in first] == ["planned", "submitted"]
    assert [event.kind for event in rest] == ["running"]
    assert dict(first[1].body) == {"cluster": "default"} and first[1].attempt == run.attempt


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", "a b", "a;b", "a'--", "x" * 200, "a\x00", "a\n", "é", ".a", "-a", "a..b"],
    ids=ascii,
)
def test_a_hostile_name_is_refused_for_a_run_a_project_and_a_cluster(name: str, database: Database):
    for field in ("name", "project", "cluster"):
        with pytest.raises(ValidationError):
            make_request(**{field: name})
    with database.write() as session, pytest.raises(InputError, match="not a valid name"):
        runs.add(session, name, make_request())
    with database.write() as session, pytest.raises(InputError, match="not a valid name"):
        projects.ensure_project(session, name)


@pytest.mark.parametrize(
    "detail",
    ["'; DROP TABLE runs; --", "a\x00b", "\ud800", "\x1b[2J", "x" * 10_000, "%s :name {0}"],
    ids=["sql", "nul", "surrogate", "escape", "long", "templates"],
)
def test_a_hostile_detail_is_stored_as_text(detail: str, database: Database):
    run = move_run(database, add_run(database), *TO_RUNNING)
    with database.write() as session:
        run = runs.move(session, run, Status.FAILED, reason=Reason.CRASHED, detail=detail)
    with database.read() as session:
        read = runs.get(session, "r1")
    assert read == run
    assert read.detail.isprintable() and read.detail.startswith(detail[:1].strip("\x00\x1b\ud800"))
    assert len(read.detail) <= 4000


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET status = 'failed'",
        "UPDATE runs SET status = 'asleep'",
        "UPDATE runs SET reason = 'user'",
        "UPDATE runs SET project = 'nobody'",
        "INSERT INTO attempts VALUES ('nobody', 1, 'x', 'c', 'done', NULL, 0, NULL, NULL)",
        "INSERT INTO events (run, origin, position, at, kind, attempt, body) "
        "VALUES ('r1', 'registry', 1, 0, 'planned', 0, '{}')",
    ],
    ids=["no reason", "no status", "reason of a plan", "no project", "no run", "one twice"],
)
def test_the_database_itself_refuses_impossible_rows(statement: str, database: Database):
    add_run(database)
    before = read_rows(database, "runs")
    with pytest.raises(DatabaseRefused), database.write() as session:
        session.execute(text(statement))
    assert read_rows(database, "runs") == before
