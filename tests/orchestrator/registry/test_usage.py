"""Only one dispatcher counts projects at a time, and submissions do not wait for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from orchestrator.registry import projects, runs, usage
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnreachable
from orchestrator.registry.values import ProjectLimits
from tests.orchestrator.registry.builders import add_run, list_runs, make_request


def run_without_waiting(database: Database, work: Callable[[Session], object]) -> None:
    """Do work in a transaction that waits at most half a second for locks."""
    with database.write() as session:
        session.execute(text("SET LOCAL lock_timeout = 500"))
        work(session)


def set_limits(session: Session) -> None:
    projects.set_limits(session, projects.get(session, "default"), ProjectLimits(max_runs=1))


def test_runs_are_submitted_while_projects_are_counted(database: Database):
    if database.is_local:
        pytest.skip("SQLite has one writer")
    add_run(database, "r1")
    with database.write() as counting:
        usage.lock_projects(counting)
        run_without_waiting(database, lambda session: runs.add(session, "r2", make_request()))
    with database.read() as session:
        assert {run.id for run in list_runs(session)} == {"r1", "r2"}


@pytest.mark.parametrize("work", [usage.lock_projects, set_limits])
def test_counting_and_setting_limits_wait_for_counting(
    database: Database, work: Callable[[Session], object]
):
    if database.is_local:
        pytest.skip("SQLite has one writer")
    add_run(database, "r1")
    with database.write() as counting:
        usage.lock_projects(counting)
        with pytest.raises(DatabaseUnreachable):
            run_without_waiting(database, work)
