"""Sessions on SQLite or PostgreSQL, with the errors of the drivers translated."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
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
from orchestrator.registry.tables import TableBase

LOCK_TIMEOUT_S = 30
"""A writer that waits longer for a lock reports the database as unreachable."""
CONNECT_TIMEOUT_S = 10
WRITE_OPTION = "slora_writes"

UNREADABLE_KEY = "unreadable_json"
"""The only key of a value whose JSON cannot be loaded; no spec or manifest has it."""

_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_REMEDY = "Use sqlite:///FILE or postgresql://USER@HOST/NAME."


class Database:
    """A pool of connections, and transactions on them."""

    def __init__(self, url: str) -> None:
        parsed_url = parse_database_url(url)
        self.display_url = redact_url(parsed_url)
        self._engine = make_engine(parsed_url)
        self.is_local = parsed_url.get_backend_name() == "sqlite"
        """Whether this process computes the results itself."""
        self._engines = {
            writes: self._engine.execution_options(**{WRITE_OPTION: writes})
            for writes in (False, True)
        }

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction for reading; on SQLite it reads one snapshot."""
        with self._open_session(writes=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction for writing, committed at the end of the block or rolled back."""
        with self._open_session(writes=True) as session:
            yield session

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _open_session(self, *, writes: bool) -> Iterator[Session]:
        session = Session(self._engines[writes])
        with translate_database_errors(self.display_url), session, session.begin():
            # Begin now and not with the first query: a writer must hold the lock before it reads.
            session.connection()
            yield session


def insert_once(
    session: Session,
    row_type: type[TableBase],
    values: dict[str, Any],
    *,
    timestamp_columns: tuple[str, ...],
) -> Row[Any] | None:
    """Insert a row and return it with its defaults; return None if its key exists.

    Unlike an IntegrityError this leaves the transaction usable, without a savepoint. The database
    sets `timestamp_columns` to the current time.
    """
    statement = _build_insert(session.get_bind().dialect.name, row_type, timestamp_columns)
    return session.execute(statement, values).first()


@cache
def _build_insert(
    backend: str, row_type: type[TableBase], timestamp_columns: tuple[str, ...]
) -> Any:
    """Build the statement; cached because that takes as long as executing it."""
    table = row_type.__table__
    assert isinstance(table, SqlTable)
    statement = _INSERTS[backend](table).values({name: now() for name in timestamp_columns})
    return statement.on_conflict_do_nothing().returning(*table.c)


def update_row(row: TableBase, values: Mapping[str, Any]) -> bool:
    """Set the columns that differ. Return whether any did."""
    changes = {name: value for name, value in values.items() if getattr(row, name) != value}
    for name, value in changes.items():
        setattr(row, name, value)
    return bool(changes)


def parse_database_url(text: str) -> URL:
    """Parse a URL, and set its driver and the absolute path of its file. Raise InputError."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        # The URL is not shown: it may contain a password.
        raise _make_input_error("the URL cannot be parsed") from error
    backend = url.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise _make_input_error(f"databases of type {url.drivername[:40]!a} are not supported")
    path = url.database or ""
    # `file:` would be a URI within the URL, with its own options.
    if path in ("", ":memory:") or path.startswith("file:") or url.query or url.host:
        raise _make_input_error("the SQLite URL must name a plain file")
    if not path.isprintable():
        raise _make_input_error("the file name contains unprintable characters")
    absolute_path = Path(path).expanduser().resolve()
    return url.set(drivername="sqlite+pysqlite", database=str(absolute_path))


def redact_url(url: URL) -> str:
    """Format a URL without its password, driver and query, which can hold secrets as well."""
    redacted = url.set(drivername=url.get_backend_name(), query={})
    return redacted.render_as_string(hide_password=True)


def make_engine(url: URL, *, migrating: bool = False) -> Engine:
    """Make an engine that configures every connection.

    `migrating` turns foreign keys off on SQLite, where altering a table recreates it.
    """
    dumps = partial(json.dumps, allow_nan=False, separators=(",", ":"))
    options: dict[str, Any] = {
        "json_serializer": dumps,
        "json_deserializer": load_json,
        "hide_parameters": True,
    }
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


def load_json(text: str | bytes) -> Any:
    """Load the JSON of a column; of a value that Python does not load, return the error's class.

    A query returns many rows, and one that somebody wrote by hand must not hide the others.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return {UNREADABLE_KEY: type(error).__name__}


@contextmanager
def translate_database_errors(display_url: str) -> Iterator[None]:
    """Translate errors of the driver, without the values of the statement."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnreachable(display_url, "all connections are in use") from error
    except (OperationalError, InterfaceError) as error:
        raise DatabaseUnreachable(display_url, _get_first_line(error)) from error
    except DatabaseError as error:
        # A wrong statement is a bug of slora and keeps its traceback.
        if isinstance(error, ProgrammingError | NotSupportedError):
            raise
        raise DatabaseRefused(display_url, _get_first_line(error)) from error


def _configure_sqlite(connection: sqlite3.Connection, record: Any, *, foreign_keys: bool) -> None:
    # The driver would begin late and commit before DDL, so BEGIN is emitted explicitly.
    connection.isolation_level = None
    # FULL: with NORMAL, the usual choice for WAL, a power loss drops the last transactions.
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A read transaction that starts to write fails at once if another one wrote meanwhile, so a
    # writer takes the lock at its beginning.
    writes = connection.get_execution_options().get(WRITE_OPTION, True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot create {path.parent}: {error.strerror or error}"
        raise InputError([Fault("database", problem, _REMEDY)]) from error


def _get_first_line(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0][:300] if lines else type(error.orig).__name__


def _make_input_error(problem: str) -> InputError:
    return InputError([Fault("database", problem, _REMEDY)])
