"""Writes of many at once: each caller gets its own answer, and all that was answered is there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.orm import Session

from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnreachable, DuplicateKey
from orchestrator.registry.group_commit import GroupCommit
from orchestrator.registry.values import Run
from tests.orchestrator.registry.builders import make_new_run


def test_what_was_answered_is_written(database: Database):
    together = GroupCommit(database)

    def add(number: int) -> Run:
        return together.write(lambda session: runs.add(session, make_new_run(f"r{number}")))

    with ThreadPoolExecutor(16) as pool:
        added = list(pool.map(add, range(100)))
    with database.read() as session:
        assert {run.id for run in runs.list_page(session, limit=200)} == {run.id for run in added}
    assert len(added) == 100


def test_one_that_fails_costs_its_own_caller_alone(database: Database):
    together, inside, go_on = GroupCommit(database), threading.Event(), threading.Event()

    def first(session: Session) -> None:
        inside.set()
        assert go_on.wait(20)

    def spoilt(session: Session) -> Run:
        runs.add(session, make_new_run("undone"))
        return runs.add(session, make_new_run("good"))

    with ThreadPoolExecutor(3) as pool:
        # While the first one writes the others come, and share the next transaction.
        leader = pool.submit(together.write, first)
        assert inside.wait(20)
        good = pool.submit(together.write, lambda session: runs.add(session, make_new_run("good")))
        while not together._waiting:
            pass
        bad = pool.submit(together.write, spoilt)
        while len(together._waiting) < 2:
            pass
        go_on.set()
        assert leader.result(20) is None and good.result(20).id == "good"
        with pytest.raises(DuplicateKey):
            bad.result(20)
    with database.read() as session:
        assert [run.id for run in runs.list_page(session)] == ["good"]


def test_a_database_that_is_away_is_told_to_each(database: Database, tmp_path_factory):
    away = Database(f"sqlite:///{tmp_path_factory.mktemp('away') / 'none.db'}")
    with pytest.raises(DatabaseUnreachable):
        GroupCommit(away).write(lambda session: runs.add(session, make_new_run("r")))
    away.close()
