"""Back up a SQLite database with its online backup API: writers are not stopped."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from orchestrator.registry.errors import BackupFailed

LOCK_TIMEOUT_S = 30.0


def copy_out(database: Path, file: Path) -> None:
    """Copy a database into the empty file, as of one moment. Raise BackupFailed."""
    with (
        _translate_errors(str(database)),
        _open_read_only(database) as source,
        closing(sqlite3.connect(file)) as target,
    ):
        source.backup(target)
        # A file of its own, which needs no journal beside it.
        target.execute("PRAGMA journal_mode=DELETE")
        _check_content(target, file)


def copy_in(file: Path, database: Path) -> None:
    """Replace the content of a database, all of it or nothing. Raise BackupFailed."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with (
        _translate_errors(str(database)),
        _open_read_only(file) as source,
        closing(sqlite3.connect(database, timeout=LOCK_TIMEOUT_S)) as target,
    ):
        _check_content(source, file)
        source.backup(target)


def read_revision(file: Path) -> str | None:
    """Return the schema revision in a backup, or None if it is no backup of a registry."""
    try:
        with _open_read_only(file) as source:
            row = source.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError:
        return None
    return None if row is None else str(row[0])


@contextmanager
def _open_read_only(file: Path) -> Iterator[sqlite3.Connection]:
    address = f"{file.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=LOCK_TIMEOUT_S)) as connection:
        yield connection


def _check_content(connection: sqlite3.Connection, file: Path) -> None:
    result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if result != "ok":
        raise BackupFailed(str(file), f"it is corrupt ({str(result)[:200]})")


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise BackupFailed(name, str(error)[:300]) from error
