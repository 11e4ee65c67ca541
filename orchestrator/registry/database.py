"""The database behind a URL: SQLite or PostgreSQL, opened the same way, failing in our words."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Row, create_engine, event
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from jobs.errors import Fault, InputError
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import DatabaseRefused, DatabaseUnreachable
from orchestrator.registry.fair_lock import FairLock
from orchestrator.registry.tables import TableBase

LOCK_TIMEOUT_S = 30
"""Until a lock that another writer holds counts as a database that does not answer."""
CONNECT_TIMEOUT_S = 10
WRITE_OPTION = "slora_writes"

_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_REMEDY = "Use sqlite:///FILE or postgresql://USER@HOST/NAME."


class Database:
    """A pool of connections, and transactions on it."""

    def __init__(self, url: str) -> None:
        parsed_url = parse_database_url(url)
        self.display_url = redact_url(parsed_url)
        self._engine = make_engine(parsed_url)
        self._write_lock = FairLock() if parsed_url.get_backend_name() == "sqlite" else None
        self._engines = {
            writes: self._engine.execution_options(**{WRITE_OPTION: writes})
            for writes in (False, True)
        }

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One look at the database, all of it from the same moment on SQLite."""
        with self._open_session(writes=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: all of it is written when the block ends, or none of it."""
        with self._open_session(writes=True) as session:
            yield session

    @property
    def is_local(self) -> bool:
        """Whether this process computes the answers itself: SQLite."""
        return self._write_lock is not None

    def close(self) -> None:
        """Ends all connections."""
        self._engine.dispose()

    @contextmanager
    def _open_session(self, *, writes: bool) -> Iterator[Session]:
        session = Session(self._engines[writes])
        with (
            self._hold_write_lock(writes),
            translate_database_errors(self.display_url),
            session,
            session.begin(),
        ):
            # Begun now and not at the first question: a writer waits for its turn before it looks.
            session.connection()
            yield session

    @contextmanager
    def _hold_write_lock(self, writes: bool) -> Iterator[None]:
        """SQLite has one writer at a time: those of this process come in their order."""
        if not writes or self._write_lock is None:
            yield
            return
        if not self._write_lock.acquire(LOCK_TIMEOUT_S):
            raise DatabaseUnreachable(
                self.display_url, "other writers of this process take too long"
            )
        try:
            yield
        finally:
            self._write_lock.release()


def insert_once(
    session: Session,
    row_type: type[TableBase],
    values: dict[str, Any],
    *,
    timestamp_columns: tuple[str, ...],
) -> Row[Any] | None:
    """The new row with what the database filled in; None where its key is there, without harm to
    the transaction and without a savepoint for it. `at`: columns that say when it was written."""
    statement = _build_insert(session.get_bind().dialect.name, row_type, timestamp_columns)
    return session.execute(statement, values).first()


@cache
def _build_insert(
    backend: str, row_type: type[TableBase], timestamp_columns: tuple[str, ...]
) -> Any:
    """Built once: to build it takes as long as to run it."""
    table = row_type.__table__
    assert isinstance(table, SqlTable)
    statement = _INSERTS[backend](table).values({name: now() for name in timestamp_columns})
    return statement.on_conflict_do_nothing().returning(*table.c)


def parse_database_url(text: str) -> URL:
    """The URL with its driver named and its file's whole path. Raises InputError."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        # Not shown: a password may stand in it.
        raise _make_input_error("the URL can't be read") from error
    backend = url.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise _make_input_error(
            f"{url.drivername[:40]!a} is no kind of database that is known here"
        )
    path = url.database or ""
    # `file:` would be a URI within the URL, with options of its own.
    if path in ("", ":memory:") or path.startswith("file:") or url.query or url.host:
        raise _make_input_error("the SQLite URL names no plain file")
    if not path.isprintable():
        raise _make_input_error("the file's name holds characters that can't be printed")
    absolute_path = Path(path).expanduser().resolve()
    return url.set(drivername="sqlite+pysqlite", database=str(absolute_path))


def redact_url(url: URL) -> str:
    """The URL for people: without its password, its driver, and its query, which may hold more."""
    redacted = url.set(drivername=url.get_backend_name(), query={})
    return redacted.render_as_string(hide_password=True)


def make_engine(url: URL, *, migrating: bool = False) -> Engine:
    """An engine with what we rely on set on every connection.

    `migrating`: without foreign keys on SQLite, where a table that is altered is made anew.
    """
    dumps = partial(json.dumps, allow_nan=False, separators=(",", ":"))
    options: dict[str, Any] = {"json_serializer": dumps, "hide_parameters": True}
    if migrating:
        options["poolclass"] = NullPool
    if url.get_backend_name() != "sqlite":
        timeouts = f"-c lock_timeout={LOCK_TIMEOUT_S * 1000}"
        arguments = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "slora",
            "options": timeouts,
        }
        return create_engine(url, connect_args=arguments, pool_pre_ping=True, **options)
    assert url.database is not None
    _make_folder(Path(url.database))
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S}, **options)
    event.listen(engine, "connect", partial(_configure_sqlite, foreign_keys=not migrating))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def translate_database_errors(display_url: str) -> Iterator[None]:
    """Turns what the driver says into our errors; what it says of values stays out."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnreachable(display_url, "every connection is in use") from error
    except (OperationalError, InterfaceError) as error:
        raise DatabaseUnreachable(display_url, _get_first_line(error)) from error
    except DatabaseError as error:
        # A statement that is wrong is a mistake of ours, and keeps its traceback.
        if isinstance(error, ProgrammingError | NotSupportedError):
            raise
        raise DatabaseRefused(display_url, _get_first_line(error)) from error


def _configure_sqlite(connection: sqlite3.Connection, record: Any, *, foreign_keys: bool) -> None:
    # The driver's own habit is to begin late and to commit before DDL; we say BEGIN ourselves.
    connection.isolation_level = None
    # Full: with WAL's usual `normal` a loss of power takes the last transactions along.
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns into a writer is refused at once if another one wrote meanwhile: whoever
    # will write says so first, and waits for its turn.
    writes = connection.get_execution_options().get(WRITE_OPTION, True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{path.parent} can't be made: {error.strerror or error}"
        raise InputError([Fault("database", problem, _REMEDY)]) from error


def _get_first_line(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0][:300] if lines else type(error.orig).__name__


def _make_input_error(problem: str) -> InputError:
    return InputError([Fault("database", problem, _REMEDY)])
