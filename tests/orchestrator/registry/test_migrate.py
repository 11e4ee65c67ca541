"""Migrations on both databases: up, down and up again, with rows in all tables."""

from __future__ import annotations

import threading
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from jobs.store.local import DirectoryStore
from orchestrator.registry import idempotency, leases, runs, schedules, tokens
from orchestrator.registry.database import Database, parse_database_url
from orchestrator.registry.errors import WrongSchema
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.migrate import (
    NO_REVISION,
    downgrade,
    list_revisions,
    open_registry,
    read_schema,
    upgrade,
)
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.schedules import NewSchedule
from orchestrator.registry.tables import (
    AdapterNameRow,
    AuditRow,
    LookRow,
    QuarantineRow,
    TableBase,
)
from tests.jobs.store.builders import race
from tests.orchestrator.registry.builders import TO_RUNNING, add_run, move_run, read_rows
from tests.orchestrator.registry.stores import fill_store

RESTORED = ("adapters", "attempts", "events", "pointers", "projects", "runs", "searches")
HERE_ONLY = (
    "audit", "firings", "leases", "looks", "quarantine", "requests", "schedules", "tokens"
)  # fmt: skip
MADE_AGAIN = ("adapter_names", "instance")
"""Tables that the upgrade fills."""

Rows = dict[str, list[dict[str, object]]]


@pytest.fixture
def full_url(empty_url: str, tmp_path: Path) -> str:
    """Create all tables, with rows in each."""
    upgrade(empty_url)
    database = Database(empty_url)
    store = DirectoryStore(tmp_path / "store")
    fill_store(store, tmp_path / "exported")
    rebuild(database, store)
    move_run(database, add_run(database), *TO_RUNNING, Status.LOST, reason=Reason.JOB_ABSENT)
    with database.write() as session:
        tokens.issue(session, "mine", "admin", project="lab")
        leases.acquire(session, "reconciler", "a", seconds=60)
        schedule = schedules.add(
            session, NewSchedule(name="nightly", cron="0 3 * * *", spec={}), next_at=1.0
        )
        schedules.fire(session, schedule, due_at=1.0, next_at=2.0, outcome="run", run="r1")
        idempotency.record_run(session, "default", "once", "d" * 64, runs.get(session, "r1"))
        session.add_all(
            [
                AuditRow(at=1.0, action="stop", object_kind="run", object="r1"),
                LookRow(loop="scheduler", kind="run", item="r1", holder="a", started_at=1.0),
                QuarantineRow(kind="run", item="r1", reason="killed it", created_at=1.0),
                AdapterNameRow(store="file:///s", name="mine", project="lab", created_at=1.0),
            ]
        )
    database.close()
    return empty_url


def read_all_rows(url: str, tables: tuple[str, ...]) -> Rows:
    database = Database(url)
    rows = {table: read_rows(database, table) for table in tables}
    database.close()
    return rows


def keep_columns_of(rows: Rows, fewer: Rows) -> Rows:
    """Return `rows` without the columns that `fewer` does not have."""
    columns = {table: set(first) for table, (first, *_) in fewer.items()}
    return {
        table: [{name: row[name] for name in row if name in columns[table]} for row in table_rows]
        for table, table_rows in rows.items()
    }


def read_tables(url: str) -> set[str]:
    engine = create_engine(parse_database_url(url))
    with engine.connect() as connection:
        names = set(engine.dialect.get_table_names(connection))
    engine.dispose()
    return names


def test_the_migrations_match_the_tables(empty_url: str):
    upgrade(empty_url)
    engine = create_engine(parse_database_url(empty_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, TableBase.metadata) == []
    engine.dispose()


def test_every_table_has_rows_before_it_is_migrated(full_url: str):
    """Otherwise the tests below would prove little."""
    assert set(TableBase.metadata.tables) == {*RESTORED, *HERE_ONLY, *MADE_AGAIN}
    assert all(read_all_rows(full_url, (*RESTORED, *HERE_ONLY, *MADE_AGAIN)).values())


def test_a_downgrade_and_upgrade_keeps_the_other_rows(full_url: str):
    before = read_all_rows(full_url, RESTORED)
    assert downgrade(full_url, "0001").revision == "0001"
    assert read_tables(full_url) == {*RESTORED, "alembic_version"}
    below = read_all_rows(full_url, RESTORED)
    assert below == keep_columns_of(before, below)
    assert upgrade(full_url).is_current
    after = read_all_rows(full_url, RESTORED)
    assert keep_columns_of(after, below) == below
    assert {run["cluster"] for run in after["runs"]} == {"default"}
    assert not any(read_all_rows(full_url, HERE_ONLY).values())
    assert all(read_all_rows(full_url, MADE_AGAIN).values())


def test_a_full_downgrade_drops_all_and_can_be_upgraded_again(full_url: str):
    assert downgrade(full_url, NO_REVISION).revision is None
    assert read_tables(full_url) == {"alembic_version"}
    for revision in list_revisions():
        assert upgrade(full_url, revision).revision == revision
    database = open_registry(full_url)
    add_run(database)
    database.close()


def test_an_upgrade_of_the_newest_schema_changes_nothing(full_url: str):
    before = read_all_rows(full_url, (*RESTORED, *HERE_ONLY))
    upgrade(full_url)
    assert read_all_rows(full_url, (*RESTORED, *HERE_ONLY)) == before


def test_a_failed_migration_changes_nothing(full_url: str, monkeypatch: pytest.MonkeyPatch):
    before = read_all_rows(full_url, (*RESTORED, *HERE_ONLY))
    real = MigrationContext.run_migrations

    def fail_at_the_end(self: MigrationContext, **rest: object) -> None:
        real(self, **rest)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(MigrationContext, "run_migrations", fail_at_the_end)
        with pytest.raises(ZeroDivisionError):
            downgrade(full_url, NO_REVISION)
    assert read_schema(full_url).is_current
    assert read_all_rows(full_url, (*RESTORED, *HERE_ONLY)) == before


def test_a_registry_without_its_tables_is_not_opened(empty_url: str):
    with pytest.raises(WrongSchema, match="has no tables; this slora needs schema 0004"):
        open_registry(empty_url)
    upgrade(empty_url, "0001")
    with pytest.raises(WrongSchema, match="has schema 0001"):
        open_registry(empty_url)


def test_a_newer_schema_is_neither_opened_nor_changed(empty_url: str):
    upgrade(empty_url)
    database = Database(empty_url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    for action in (open_registry, upgrade, lambda url: downgrade(url, NO_REVISION)):
        with pytest.raises(WrongSchema, match="has schema 9999"):
            action(empty_url)
    assert read_schema(empty_url).revision == "9999"
    assert "runs" in read_tables(empty_url)


def test_reading_the_schema_creates_no_file(tmp_path: Path):
    assert read_schema(f"sqlite:///{tmp_path / 'none' / 'registry.db'}").revision is None
    assert list(tmp_path.iterdir()) == []


def _upgrade(start: Barrier, mine: int, url: str) -> None:
    start.wait()
    assert upgrade(url).is_current


def test_concurrent_upgrades_all_succeed(empty_url: str):
    assert race(_upgrade, empty_url, count=3) == [0, 0, 0]
    assert read_schema(empty_url).is_current


def test_threads_can_upgrade_different_databases(tmp_path: Path):
    urls = [f"sqlite:///{tmp_path / str(number)}.db" for number in range(4)]
    threads = [threading.Thread(target=upgrade, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(read_schema(url).is_current for url in urls)
