"""The database behind a URL: what is accepted, what is relied on, and what is never shown."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs.errors import InputError
from orchestrator.registry import database as module
from orchestrator.registry import runs
from orchestrator.registry.database import Database, parse_database_url
from orchestrator.registry.errors import DatabaseRefused, DatabaseUnreachable, WrongSchema
from orchestrator.registry.migrate import open_registry, read_schema
from tests.orchestrator.registry.builders import add_run, list_runs, make_request, read_rows

PASSWORD = "hunter2-9f2c"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "registry.db",
        "mysql://host/db",
        f"mysql://u:{PASSWORD}@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite:///x.db?mode=ro",
        "sqlite://host/x.db",
        "sqlite:///a\x00b",
        "sqlite:////proc/no/registry.db",
        f"postgresql://u:{PASSWORD}@host:port/db",
    ],
    ids=ascii,
)
def test_an_invalid_url_is_refused(url: str):
    with pytest.raises(InputError, match=r"Use sqlite:///FILE or postgresql://") as error:
        Database(url)
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_scheme_of_postgresql_uses_the_installed_driver(scheme: str):
    assert parse_database_url(f"{scheme}://u@host/db").drivername == "postgresql+psycopg"


def test_a_relative_file_is_in_the_working_directory(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = parse_database_url("sqlite:///.cache/registry.db")
    assert url.database == str(tmp_path / ".cache/registry.db")


def test_sqlite_is_durable_and_checks_references(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    with database.read() as session:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [session.scalar(text(f"PRAGMA {name}")) for name in pragmas]
    # 2 is FULL.
    assert values == ["wal", 2, 1, 30_000]
    database.close()


def test_an_unreachable_server_is_reported_without_its_password():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        url = f"postgresql://u:{PASSWORD}@127.0.0.1:{port}/db"
        with pytest.raises(DatabaseUnreachable, match="does not answer") as error:
            read_schema(url)
    assert PASSWORD not in str(error.value)
    assert error.value.exit_code == 3


def test_a_file_that_is_not_a_database_is_reported(tmp_path: Path):
    (tmp_path / "registry.db").write_text("these are words, and many of them" * 100)
    with pytest.raises((DatabaseUnreachable, DatabaseRefused), match="not a database"):
        read_schema(f"sqlite:///{tmp_path / 'registry.db'}")


def test_a_file_that_is_locked_for_too_long_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.1)
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    first, second = Database(url), Database(url)
    with first.write(), pytest.raises(DatabaseUnreachable, match="locked"), second.write():
        pass
    with second.write():
        pass
    first.close()
    second.close()


def test_a_reader_neither_waits_for_a_writer_nor_reads_its_changes(database: Database):
    add_run(database)
    with database.write() as writing:
        runs.add(writing, "r2", make_request())
        with database.read() as reading:
            assert [run.id for run in list_runs(reading)] == ["r1"]
    assert len(read_rows(database, "runs")) == 2


@pytest.mark.postgres
def test_a_closed_connection_is_replaced(postgres):
    """Simulate a restart of the server."""
    url = postgres.new_database(tables=True)
    database, other = Database(url), Database(url)
    add_run(database)
    with other.write() as session:
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert add_run(database, "r2").id == "r2"
    database.close()
    other.close()
    postgres.drop(url)


@pytest.mark.postgres
def test_a_number_too_large_for_its_column_is_refused(postgres):
    url = postgres.new_database(tables=True)
    database = Database(url)
    add_run(database)
    with pytest.raises(DatabaseRefused, match="out of range"), database.write() as session:
        session.execute(text("UPDATE runs SET workers = 3000000000"))
    database.close()
    postgres.drop(url)


def test_a_registry_is_opened_by_its_url(url: str):
    database = open_registry(url)
    assert add_run(database).id == "r1"
    database.close()


def test_errors_of_the_registry_survive_a_pickle():
    import pickle

    error = pickle.loads(pickle.dumps(WrongSchema("sqlite:///x", None, "0002")))
    assert "has no tables" in str(error)
