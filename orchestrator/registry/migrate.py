"""The tables' versions: where a database is, and the way up and down. Ships its migrations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from orchestrator.registry.database import Database, database_url, engine_of, said, shown
from orchestrator.registry.errors import Damaged, WrongSchema

FOLDER = Path(__file__).parent / "migrations"
NOTHING = "base"
LOCK = 0x510_0A
"""PostgreSQL's advisory lock: two that upgrade at once do it one after the other."""

# Alembic speaks through module-level proxies: one migration at a time in a process.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Schema:
    """Where a database's tables are."""

    database: str
    found: str | None
    """None where there are no tables of ours."""
    newest: str
    """What this program knows and needs."""

    @property
    def current(self) -> bool:
        """Whether the registry can be used as it is."""
        return self.found == self.newest


def revisions() -> list[str]:
    """All versions of the tables, the first one first."""
    return [one.revision for one in reversed(list(_scripts().walk_revisions()))]


def schema_of(url: str) -> Schema:
    """Where the database's tables are; nothing is changed, and no file is made."""
    found = database_url(url)
    if found.get_backend_name() == "sqlite" and not Path(found.database or "").exists():
        return Schema(shown(found), None, revisions()[-1])
    with _connected(url) as (connection, place):
        return Schema(place, _found(connection), revisions()[-1])


def upgrade(url: str, to: str | None = None) -> Schema:
    """Bring the tables to the newest version, or to `to`; data stay. The same again is nothing."""
    return _migrate(url, to or revisions()[-1], command.upgrade)


def downgrade(url: str, to: str) -> Schema:
    """Take the tables back to `to`, or to NOTHING: what newer tables hold is gone."""
    return _migrate(url, to, command.downgrade)


def open_registry(url: str) -> Database:
    """The database, its tables being those that this program knows. Raises WrongSchema."""
    schema = schema_of(url)
    if not schema.current:
        raise WrongSchema(schema.database, schema.found, schema.newest)
    return Database(url)


def _migrate(url: str, to: str, walk: Callable[[Config, str], None]) -> Schema:
    with _one_at_a_time, _connected(url) as (connection, place):
        found, known = _found(connection), revisions()
        if found is not None and found not in known:
            raise WrongSchema(place, found, known[-1])
        config = _config()
        config.attributes["connection"] = connection
        walk(config, to)
        _check_references(connection, place)
        return Schema(place, _found(connection), known[-1])


@contextmanager
def _connected(url: str) -> Iterator[tuple[Connection, str]]:
    """One connection in one transaction, which other migrations wait for."""
    found = database_url(url)
    place = shown(found)
    engine = engine_of(found, migrating=True)
    try:
        with said(place), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            yield connection, place
    finally:
        engine.dispose()


def _found(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    # Options are templates, in which a % of the folder's name stands for more.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def _check_references(connection: Connection, place: str) -> None:
    """SQLite's foreign keys are off while tables are made anew; nothing may dangle after it."""
    if connection.dialect.name == "sqlite":
        dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if dangling is not None:
            raise Damaged(place, f"{dangling[0]} would name rows of {dangling[2]} that are gone")
