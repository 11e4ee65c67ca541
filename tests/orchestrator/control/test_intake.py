"""An answer means a run with a request in the store; without an answer a client may retry."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from jobs.errors import InputError, StoreUnreachable
from jobs.store.open import open_store
from orchestrator.control.intake import Intake
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import projects
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnreachable, QuotaExceeded
from orchestrator.registry.rebuild.rebuild_projects import rebuild_projects
from orchestrator.registry.values import ProjectLimits
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.control import ControlHarness
from tests.orchestrator.registry.builders import list_runs


class FailingDatabase(Database):
    """Reads from a database, and fails to write."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def read(self) -> Iterator[Session]:
        with self._database.read() as session:
            yield session


def list_rows(control: ControlHarness) -> list[str]:
    with control.database.read() as session:
        return sorted(run.id for run in list_runs(session))


def list_requests(control: ControlHarness) -> list[str]:
    return sorted(key.split("/")[1] for key in open_store(control.store).list("runs/"))


def test_an_accepted_run_has_a_row_and_a_request(control: ControlHarness):
    run = control.submit(priority=3)
    assert list_rows(control) == list_requests(control) == [run.id]
    assert (run.priority, run.tokens, run.workers) == (3, 10 * 4 * 64, 1)


def test_a_repeated_key_returns_the_same_run(control: ControlHarness):
    submission = SubmitRequest(spec=make_spec(control.store))
    first, new = control.intake.accept(submission, key="k1")
    again, newer = control.intake.accept(submission, key="k1")
    assert (again.id, new, newer) == (first.id, True, False)
    assert list_rows(control) == list_requests(control) == [first.id]


def test_a_key_that_was_used_for_something_else_is_refused(control: ControlHarness):
    control.intake.accept(SubmitRequest(spec=make_spec(control.store)), key="k1")
    with pytest.raises(InputError, match="used for another submission"):
        control.intake.accept(SubmitRequest(spec=make_spec(control.store), priority=1), key="k1")
    assert len(list_rows(control)) == len(list_requests(control)) == 1


def test_concurrent_submissions_with_one_key_get_one_run(control: ControlHarness):
    start = threading.Barrier(8)

    def submit(number: int) -> str:
        start.wait()
        return control.intake.accept(SubmitRequest(spec=make_spec(control.store)), key="k")[0].id

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(submit, range(8)))
    assert len(ids) == 1 and list_rows(control) == list_requests(control) == sorted(ids)


def test_concurrent_submissions_get_a_run_each(control: ControlHarness):
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: control.submit().id, range(40)))
    assert len(set(ids)) == 40 and list_rows(control) == list_requests(control) == sorted(ids)


def test_nothing_is_accepted_while_the_store_is_unreachable(control: ControlHarness):
    def fail(url: str) -> Any:
        raise StoreUnreachable("the store is away")

    control.open = fail
    with pytest.raises(StoreUnreachable):
        control.submit()
    assert list_rows(control) == []


def test_nothing_is_accepted_and_no_request_stays_while_the_database_is_unreachable(
    control: ControlHarness,
):
    class BrokenDatabase(FailingDatabase):
        @contextmanager
        def write(self) -> Iterator[Session]:
            raise DatabaseUnreachable("broken", "it is away")
            yield

    control.use_intake(BrokenDatabase(control.database))
    with pytest.raises(DatabaseUnreachable):
        control.submit()
    assert list_requests(control) == [] and list_rows(control) == []


def test_a_commit_whose_reply_is_lost_counts_as_accepted(control: ControlHarness):
    class MuteDatabase(FailingDatabase):
        @contextmanager
        def write(self) -> Iterator[Session]:
            with control.database.write() as session:
                yield session
            raise DatabaseUnreachable("mute", "the connection broke")

    control.use_intake(MuteDatabase(control.database))
    run = control.submit()
    assert list_rows(control) == list_requests(control) == [run.id]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"cluster": "nowhere"}, id="cluster"),
        pytest.param({"spec": {"name": "chat"}}, id="spec"),
        pytest.param({"spec": make_spec("file:///elsewhere")}, id="store"),
    ],
)
def test_an_invalid_submission_is_refused_and_leaves_nothing(
    control: ControlHarness, wrong: dict[str, Any]
):
    with pytest.raises(InputError):
        control.intake.accept(SubmitRequest(**{"spec": make_spec(control.store), **wrong}))
    assert list_rows(control) == list_requests(control) == []


def test_an_accepted_run_is_restored_after_the_registry_was_lost(control: ControlHarness):
    run = control.submit(project="team", priority=4)
    with control.database.write() as session:
        for table in ("events", "attempts", "runs"):
            session.execute(text(f"DELETE FROM {table}"))
    rebuild_projects(control.database, open_store(control.store))
    restored = control.read(run)
    assert (restored.project, restored.priority, restored.status) == ("team", 4, run.status)


def test_a_project_at_its_limit_costs_no_write_of_the_store(control: ControlHarness):
    puts = []

    def open_counting(url: str) -> Any:
        puts.append(url)
        return open_store(url)

    intake = Intake(control.database, [control.store], ["default"], store_opener=open_counting)
    submission = SubmitRequest(spec=make_spec(control.store))
    with control.database.write() as session:
        project = projects.ensure_project(session, "default")
        project = projects.set_limits(session, project, ProjectLimits(max_queued=0))
    for _ in range(3):
        with pytest.raises(QuotaExceeded):
            intake.accept(submission)
    # Only the first wrote a request, and deleted it.
    assert len(puts) == 2 and list_requests(control) == list_rows(control) == []
    with control.database.write() as session:
        projects.set_limits(session, project, ProjectLimits())
    run, _ = intake.accept(submission)
    assert list_rows(control) == list_requests(control) == [run.id]
