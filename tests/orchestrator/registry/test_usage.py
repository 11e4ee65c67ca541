"""Projects are counted by one at a time, and nobody else waits for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from orchestrator.registry import projects, runs, usage
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnreachable
from orchestrator.registry.values import ProjectLimits
from tests.orchestrator.registry.builders import add_run, make_request


def soon(database: Database, work: Callable[[Session], object]) -> None:
    """In a transaction that waits half a second for anybody else."""
    with database.write() as session:
        session.execute(text("SET LOCAL lock_timeout = 500"))
        work(session)


def limited(session: Session) -> None:
    projects.set_limits(session, projects.get(session, "default"), ProjectLimits(max_runs=1))


def test_while_projects_are_counted_runs_are_submitted_to_them(database: Database):
    if database.is_local:
        pytest.skip("SQLite has one writer")
    add_run(database, "r1")
    with database.write() as counting:
        usage.lock_projects(counting)
        soon(database, lambda session: runs.add(session, "r2", make_request()))
    with database.read() as session:
        assert {run.id for run in runs.list_page(session)} == {"r1", "r2"}


@pytest.mark.parametrize("work", [usage.lock_projects, limited])
def test_who_counts_or_sets_limits_waits_for_who_counts(
    database: Database, work: Callable[[Session], object]
):
    if database.is_local:
        pytest.skip("SQLite has one writer")
    add_run(database, "r1")
    with database.write() as counting:
        usage.lock_projects(counting)
        with pytest.raises(DatabaseUnreachable):
            soon(database, work)
