"""A backup is complete and private, and a restore loses no rows by accident."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs.errors import InputError
from orchestrator.registry import leases
from orchestrator.registry.backup.backup import back_up, restore
from orchestrator.registry.database import Database
from orchestrator.registry.errors import BackupFailed, DatabaseUnreachable, WrongSchema
from orchestrator.registry.migrate import read_schema, upgrade
from orchestrator.registry.tenancy.instances import read_instance
from tests.orchestrator.conftest import Postgres
from tests.orchestrator.registry.builders import add_run, age_leases, read_rows


@pytest.fixture(autouse=True)
def programs(request: pytest.FixtureRequest) -> None:
    """Put PostgreSQL's programs on the PATH of the tests that use its server."""
    if "postgresql" in request.node.name:
        request.getfixturevalue("postgres_programs")


@pytest.fixture
def other_url(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A second database of the same kind, without tables."""
    if url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'other' / 'registry.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    other = server.new_database()
    yield other
    server.drop(other)


def list_ids(url: str) -> list[str]:
    database = Database(url)
    try:
        return [row["id"] for row in read_rows(database, "runs")]
    finally:
        database.close()


def test_a_backup_has_what_was_committed_and_goes_into_an_empty_database(
    url: str, other_url: str, database: Database, tmp_path: Path
):
    add_run(database, "r1")
    file = tmp_path / "backup"
    back_up(url, file)
    add_run(database, "r2")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.glob(".backup*")) == []
    assert restore(other_url, file).is_current
    assert list_ids(other_url) == ["r1"] and list_ids(url) == ["r1", "r2"]
    other = Database(other_url)
    assert read_instance(other) == read_instance(database)
    assert len(read_rows(other, "events")) == 1
    add_run(other, "r3")  # its sequences continue
    other.close()


def test_a_database_with_rows_is_only_replaced_on_request(
    url: str, database: Database, tmp_path: Path
):
    add_run(database, "r1")
    back_up(url, tmp_path / "backup")
    add_run(database, "r2")
    with pytest.raises(InputError, match=r"2 runs.*--replace"):
        restore(url, tmp_path / "backup")
    assert list_ids(url) == ["r1", "r2"]
    restore(url, tmp_path / "backup", replace=True)
    assert list_ids(url) == ["r1"]


def test_a_database_that_a_service_uses_is_never_replaced(
    url: str, database: Database, tmp_path: Path
):
    back_up(url, tmp_path / "backup")
    with database.write() as session:
        leases.acquire(session, "scheduler", "host-1", seconds=30)
    with pytest.raises(InputError, match=r"host-1 uses .*Stop all its services"):
        restore(url, tmp_path / "backup", replace=True)
    age_leases(database, 31)
    restore(url, tmp_path / "backup", replace=True)


def test_an_older_backup_is_upgraded_even_over_newer_tables(empty_url: str, tmp_path: Path):
    upgrade(empty_url, "0003")
    file = tmp_path / "backup"
    with pytest.raises(WrongSchema):
        back_up(empty_url, file)
    make_old_backup(empty_url, file)
    upgrade(empty_url)
    restore(empty_url, file, replace=True)
    assert read_schema(empty_url).is_current


def test_a_backup_of_a_newer_slora_is_refused(url: str, database: Database, tmp_path: Path):
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    make_old_backup(url, tmp_path / "backup")
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0004'"))
    add_run(database, "r1")
    with pytest.raises(WrongSchema, match="9999"):
        restore(url, tmp_path / "backup", replace=True)
    assert list_ids(url) == ["r1"]


@pytest.mark.parametrize("content", [b"", b"not a backup", b"SQLite format 3\0" + b"\xff" * 5000])
def test_another_file_is_refused(url: str, database: Database, content: bytes, tmp_path: Path):
    (tmp_path / "file").write_bytes(content)
    add_run(database, "r1")
    with pytest.raises(InputError, match="not a backup of a registry"):
        restore(url, tmp_path / "file", replace=True)
    with pytest.raises(InputError, match="not a backup of a registry"):
        restore(url, tmp_path / "absent", replace=True)
    assert list_ids(url) == ["r1"]


def test_a_truncated_backup_changes_nothing(url: str, database: Database, tmp_path: Path):
    for number in range(200):
        add_run(database, f"r{number}")
    file = tmp_path / "backup"
    back_up(url, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    with pytest.raises((BackupFailed, InputError)):
        restore(url, file, replace=True)
    assert len(list_ids(url)) == 200


def test_an_existing_file_is_not_overwritten(url: str, tmp_path: Path):
    (tmp_path / "backup").write_text("precious")
    with pytest.raises(InputError, match="exists"):
        back_up(url, tmp_path / "backup")
    assert (tmp_path / "backup").read_text() == "precious"
    with pytest.raises(InputError, match="cannot be written"):
        back_up(url, tmp_path / "absent" / "backup")


@pytest.mark.postgres
def test_a_password_is_neither_an_argument_nor_in_an_error(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = postgres.new_database(tables=True).replace("postgres:@", "postgres:hidden-word@")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (programs / name).write_text(
            f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n'
            f'echo "$PGPASSWORD" > {tmp_path}/password\necho broken >&2\nexit 1\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BackupFailed, match="broken") as failure:
        back_up(url, tmp_path / "backup")
    assert "hidden-word" not in str(failure.value)
    assert "hidden-word" not in (tmp_path / "arguments").read_text()
    assert (tmp_path / "password").read_text() == "hidden-word\n"
    assert not (tmp_path / "backup").exists()


@pytest.mark.postgres
def test_a_missing_program_is_named(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="pg_dump"):
        back_up(postgres.new_database(tables=True), tmp_path / "backup")


def test_an_unreachable_database_is_one_error(tmp_path: Path):
    with pytest.raises(DatabaseUnreachable):
        back_up("postgresql://user@127.0.0.1:1/none", tmp_path / "backup")


def make_old_backup(url: str, file: Path) -> None:
    """Back up tables of another version, as that version does."""
    from orchestrator.registry.backup import postgres_backup, sqlite_backup
    from orchestrator.registry.database import parse_database_url

    parsed = parse_database_url(url)
    if url.startswith("sqlite"):
        file.touch()
        sqlite_backup.copy_out(Path(parsed.database or ""), file)
    else:
        postgres_backup.copy_out(parsed, file)
