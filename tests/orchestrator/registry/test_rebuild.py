"""Rebuilding the registry from a store, on both databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from jobs.errors import NotInStore
from jobs.store.adapters.listing import read_committed
from jobs.store.adapters.manifest import get_manifest_key
from jobs.store.adapters.operations import delete_version, promote, rollback
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from jobs.store.trust.version_trust import sign_version
from orchestrator.registry import adapters, leases, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LeaseHeld, LeaseLost
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.migrate import upgrade
from orchestrator.registry.rebuild.rebuild import LEASE_NAME, rebuild
from orchestrator.registry.tables import SearchRow
from tests.jobs.store.builders import DyingStore, Killed
from tests.jobs.trust.keys import Keys
from tests.orchestrator.registry.builders import (
    add_run,
    age_leases,
    count_changes,
    list_runs,
    move_run,
    read_rows,
)
from tests.orchestrator.registry.stores import (
    DONE,
    FAILED,
    NOON,
    PLANNED,
    RUNNING,
    SEARCHED,
    STOPPED,
    TRIAL,
    commit_version,
    write_run,
)

TABLES = ("projects", "runs", "attempts", "events", "adapters", "pointers", "searches")
BEGAN = 1767268800.0
"""The time in the ids of the runs, in seconds."""


def read_tables(database: Database) -> dict[str, Any]:
    return {table: read_rows(database, table) for table in TABLES}


def test_runs_are_restored_with_their_status_and_reason(database: Database, full: DirectoryStore):
    result = rebuild(database, full)
    assert (result.runs.total, result.faults) == (7, [])
    with database.read() as session:
        runs_by_id = {run.id: run for run in list_runs(session)}
        events = [
            (event.kind, event.at) for event in runs.list_events(session, DONE, origin="store")
        ]
        (attempt,) = runs.list_attempts(session, DONE)
    assert {run_id: (run.status, run.reason) for run_id, run in runs_by_id.items()} == {
        DONE: (Status.DONE, None),
        FAILED: (Status.FAILED, Reason.CRASHED),
        STOPPED: (Status.STOPPED, Reason.USER),
        RUNNING: (Status.RUNNING, None),
        PLANNED: (Status.PLANNED, None),
        SEARCHED: (Status.DONE, None),
        TRIAL: (Status.DONE, None),
    }
    assert runs_by_id[FAILED].detail == "rank 1: no memory"
    assert (runs_by_id[DONE].workers, runs_by_id[DONE].name, runs_by_id[DONE].store) == (
        2,
        "chat",
        full.url(""),
    )
    assert (runs_by_id[DONE].created_at, runs_by_id[DONE].updated_at) == (BEGAN, NOON + 1)
    assert (runs_by_id[DONE].attempt, attempt.submission) == (2, f"{DONE}-a2")
    assert (runs_by_id[SEARCHED].kind, runs_by_id[DONE].kind) == ("search", "finetune")
    assert (runs_by_id[TRIAL].search, runs_by_id[DONE].search) == (SEARCHED, None)
    assert events == [("started", NOON), ("published", NOON + 1)]


def test_adapters_and_pointers_are_restored(database: Database, full: DirectoryStore):
    assert rebuild(database, full).adapters.total == 2
    with database.read() as session:
        first, second = adapters.list_page(session)
        (pointer,) = adapters.list_pointers(session, full.url(""))
    assert (first.label, first.run, first.attempt) == ("chat@v1", DONE, 2)
    assert (second.label, second.parent, second.search) == ("chat@v2", "chat@v1", SEARCHED)
    assert dict(first.manifest) == json.loads(full.get(get_manifest_key("chat", 1)))
    assert (pointer.name, pointer.version, pointer.move) == ("chat", 1, 1)


def test_a_search_is_restored_with_its_best_trial(database: Database, full: DirectoryStore):
    assert rebuild(database, full).searches.total == 1
    with database.read() as session:
        (search,) = session.scalars(select(SearchRow)).all()
        assert (search.run, search.metric, search.direction) == (
            SEARCHED,
            "eval_accuracy",
            "max",
        )
        assert dict(search.trials) == {"done": 1, "rejected": 1}
        assert (search.best_run, search.best_metric, search.adapter) == (TRIAL, 1.5, "chat@v2")


def test_a_second_rebuild_changes_nothing(database: Database, full: DirectoryStore):
    first = rebuild(database, full)
    before = read_tables(database)
    second = rebuild(database, full)
    assert all(count_changes(first))
    assert count_changes(second) == (0, 0, 0, 0)
    assert read_tables(database) == before


def test_a_run_that_the_control_plane_moved_is_restored_equal_after_a_loss(
    database: Database, full: DirectoryStore, tmp_path: Path
):
    """Compare the registry of a live service with the adapter that is rebuilt from its store."""
    run = move_run(
        database, add_run(database, DONE, store=full.url(""), workers=2), Status.SUBMITTED
    )
    run = move_run(database, run, Status.LOST, reason=Reason.JOB_ABSENT)
    path = (Status.PLANNED, Status.SUBMITTED, Status.RUNNING, Status.PUBLISHING, Status.DONE)
    run = move_run(database, run, *path)
    rebuild(database, full)
    with database.read() as session:
        assert runs.get(session, DONE) == run
    database_file = tmp_path / "again.db"
    upgrade(f"sqlite:///{database_file}")
    again = Database(f"sqlite:///{database_file}")
    rebuild(again, full)
    with again.read() as session:
        back = runs.get(session, DONE)
    same = ("id", "project", "kind", "name", "store", "workers", "status", "reason", "attempt")
    assert [getattr(back, name) for name in same] == [getattr(run, name) for name in same]
    for table in ("adapters", "pointers", "searches"):
        assert len(read_rows(again, table)) == len(read_rows(database, table))
    again.close()


def test_a_run_that_the_control_plane_moved_is_not_changed(
    database: Database, full: DirectoryStore
):
    run = move_run(database, add_run(database, FAILED), Status.SUBMITTED)
    result = rebuild(database, full)
    with database.read() as session:
        assert runs.get(session, FAILED) == run
        assert [event.kind for event in runs.list_events(session, FAILED, origin="store")] == [
            "started",
            "failed",
        ]
    assert result.runs.changed == 6


def test_a_later_rebuild_follows_changes_in_the_store(database: Database, full: DirectoryStore):
    rebuild(database, full)
    RunStore(full, RUNNING).events.append({"event": "failed", "time": NOON + 50, "why": "again"})
    rollback_to = promote(full, "chat", 2)
    result = rebuild(database, full)
    assert count_changes(result) == (1, 0, 0, 1)
    with database.read() as session:
        run = runs.get(session, RUNNING)
        (pointer,) = adapters.list_pointers(session, full.url(""))
    assert (run.status, run.detail, run.revision) == (Status.FAILED, "again", 2)
    assert (pointer.version, pointer.move) == (2, rollback_to.moves[-1].number)
    rollback(full, "chat")
    rebuild(database, full)
    with database.read() as session:
        assert adapters.list_pointers(session, full.url(""))[0].version == 1


def test_a_deleted_adapter_is_removed_and_an_unreadable_one_stays(
    database: Database, full: DirectoryStore
):
    rebuild(database, full)
    delete_version(full, "chat", 2)
    full.put(get_manifest_key("chat", 1), b"corrupt")
    result = rebuild(database, full)
    assert result.removed == ["chat@v2"]
    assert [fault.key for fault in result.faults] == ["adapters/chat/v1/manifest.json"]
    with database.read() as session:
        assert [adapter.label for adapter in adapters.list_page(session)] == ["chat@v1"]
        assert len(adapters.list_pointers(session, full.url(""))) == 1


def test_another_store_removes_nothing(database: Database, full: DirectoryStore, tmp_path: Path):
    rebuild(database, full)
    other = DirectoryStore(tmp_path / "other")
    commit_version(other, tmp_path / "exported", run="other")
    assert rebuild(database, other).removed == []
    with database.read() as session:
        assert len(adapters.list_page(session)) == 3
        assert len(adapters.list_page(session, store=other.url(""))) == 1


def test_an_adapter_means_done_whatever_the_journal_says(
    database: Database, store: DirectoryStore, tmp_path: Path
):
    write_run(store, RUNNING, {"event": "started"})
    commit_version(store, tmp_path / "exported", run=RUNNING)
    rebuild(database, store)
    with database.read() as session:
        assert runs.get(session, RUNNING).status is Status.DONE


def test_the_claim_of_a_dead_attempt_still_fences(database: Database, store: DirectoryStore):
    """Otherwise the next attempt would get the number of adapter that may be alive."""
    write_run(store, RUNNING, {"event": "started"})
    claim = json.dumps({"run": RUNNING, "attempt": 5}).encode()
    store.put("adapters/chat/v1/.claim", claim)
    rebuild(database, store)
    with database.read() as session:
        assert runs.get(session, RUNNING).attempt == 5


def test_only_one_rebuild_runs_at_a_time(database: Database, full: DirectoryStore):
    with database.write() as session:
        lease = leases.acquire(session, LEASE_NAME, "another", seconds=60)
        assert lease is not None
    with pytest.raises(LeaseHeld, match="Another process holds the lease rebuild"):
        rebuild(database, full)
    assert read_rows(database, "runs") == []
    with database.write() as session:
        leases.release(session, lease)
    assert rebuild(database, full).runs.total == 7


def test_a_rebuild_that_lost_its_lease_stops_writing(database: Database, full: DirectoryStore):
    def overtake(_: int) -> None:
        age_leases(database, 1000)

    with pytest.raises(LeaseLost):
        rebuild(database, full, on_progress=overtake)
    assert read_rows(database, "adapters") == []


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 13])
def test_a_rebuild_that_died_is_completed_by_the_next(
    at: int, database: Database, full: DirectoryStore
):
    with pytest.raises(Killed):
        rebuild(database, DyingStore(full, at=at))
    age_leases(database, 1000)
    assert rebuild(database, full).runs.total == 7
    with database.read() as session:
        assert len(adapters.list_page(session)) == 2
    assert count_changes(rebuild(database, full)) == (0, 0, 0, 0)


def test_progress_counts_every_object(database: Database, full: DirectoryStore):
    total, progress = list[int](), list[int]()
    rebuild(database, full, on_total=total.append, on_progress=progress.append)
    # Seven runs, two manifests, adapter pointer.
    assert total == [10] and sum(progress) == 10


def test_a_run_that_is_deleted_while_it_is_read_is_not_a_fault(
    database: Database, full: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    class Vanishing(DyingStore):
        def read(self, key: str, start: int, length: int | None = None) -> bytes:
            if key.startswith(f"runs/{PLANNED}/"):
                raise NotInStore(key)
            return super().read(key, start, length)

    result = rebuild(database, Vanishing(full))
    assert (result.runs.total, result.faults) == (6, [])


def test_under_a_policy_what_is_not_signed_is_a_fault_and_not_indexed(
    database: Database, full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = Keys(tmp_path, monkeypatch)
    sign_version(full, read_committed(full, "chat", 1), "default", keys.ours)
    keys.trust()
    result = rebuild(database, full)
    assert {fault.key: fault.problem for fault in result.faults} == {
        "adapters/chat/v2/manifest.json": "it is not signed",
        "adapters/chat/current": "the pointer is not signed",
    }
    with database.read() as session:
        assert [adapter.label for adapter in adapters.list_page(session)] == ["chat@v1"]
        assert adapters.list_pointers(session, full.url("")) == []


def test_under_a_policy_the_move_of_a_pointer_only_grows(
    database: Database, full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = Keys(tmp_path, monkeypatch)
    for version in (1, 2):
        sign_version(full, read_committed(full, "chat", version), "default", keys.ours)
    keys.trust()
    promote(full, "chat", 1, signer=keys.ours)
    old = full.get("adapters/chat/current")
    promote(full, "chat", 2, signer=keys.ours)
    assert rebuild(database, full).faults == []
    keys.forget_moves(str(tmp_path / "another host"))
    full.put("adapters/chat/current", old)
    for problem in ("the pointer is at move 2", "there is no pointer"):
        [fault] = rebuild(database, full).faults
        assert fault.problem == f"{problem}, but the registry has seen move 3"
        with database.read() as session:
            (pointer,) = adapters.list_pointers(session, full.url(""))
        assert (pointer.version, pointer.move) == (2, 3)
        full.delete("adapters/chat/current")
        keys.forget_moves(str(tmp_path / "a third host"))
    keys.distrust()
    assert rebuild(database, full).faults == []
    with database.read() as session:
        assert adapters.list_pointers(session, full.url("")) == []
