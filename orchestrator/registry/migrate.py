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

from orchestrator.registry.database import (
    Database,
    make_engine,
    parse_database_url,
    redact_url,
    translate_database_errors,
)
from orchestrator.registry.errors import DatabaseRefused, WrongSchema

MIGRATIONS_DIR = Path(__file__).parent / "migrations"
NO_REVISION = "base"
ADVISORY_LOCK = 0x510_0A
"""PostgreSQL's advisory lock: two that upgrade at once do it one after the other."""

# Alembic speaks through module-level proxies: one migration at a time in a process.
_migration_lock = threading.Lock()


@dataclass(frozen=True)
class SchemaState:
    """Where a database's tables are."""

    database: str
    revision: str | None
    """None where there are no tables of ours."""
    newest: str
    """What this program knows and needs."""

    @property
    def is_current(self) -> bool:
        """Whether the registry can be used as it is."""
        return self.revision == self.newest


def list_revisions() -> list[str]:
    """All versions of the tables, the first one first."""
    return [script.revision for script in reversed(list(_load_scripts().walk_revisions()))]


def read_schema(url: str) -> SchemaState:
    """Where the database's tables are; nothing is changed, and no file is made."""
    parsed_url = parse_database_url(url)
    if parsed_url.get_backend_name() == "sqlite" and not Path(parsed_url.database or "").exists():
        return SchemaState(redact_url(parsed_url), None, list_revisions()[-1])
    with _connect(url) as (connection, display_url):
        return SchemaState(display_url, _read_revision(connection), list_revisions()[-1])


def upgrade(url: str, target: str | None = None) -> SchemaState:
    """Bring the tables to the newest version, or to `to`; data stay. The same again is nothing."""
    return _migrate(url, target or list_revisions()[-1], command.upgrade)


def downgrade(url: str, target: str) -> SchemaState:
    """Take the tables back to `to`, or to NOTHING: what newer tables hold is gone."""
    return _migrate(url, target, command.downgrade)


def open_registry(url: str) -> Database:
    """The database, its tables being those that this program knows. Raises WrongSchema."""
    schema = read_schema(url)
    if not schema.is_current:
        raise WrongSchema(schema.database, schema.revision, schema.newest)
    return Database(url)


def _migrate(url: str, target: str, run_command: Callable[[Config, str], None]) -> SchemaState:
    with _migration_lock, _connect(url) as (connection, display_url):
        revision, known = _read_revision(connection), list_revisions()
        if revision is not None and revision not in known:
            raise WrongSchema(display_url, revision, known[-1])
        config = _make_config()
        config.attributes["connection"] = connection
        run_command(config, target)
        _check_references(connection, display_url)
        return SchemaState(display_url, _read_revision(connection), known[-1])


@contextmanager
def _connect(url: str) -> Iterator[tuple[Connection, str]]:
    """One connection in one transaction, which other migrations wait for."""
    parsed_url = parse_database_url(url)
    display_url = redact_url(parsed_url)
    engine = make_engine(parsed_url, migrating=True)
    try:
        with translate_database_errors(display_url), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK}
                )
            yield connection, display_url
    finally:
        engine.dispose()


def _read_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _load_scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_make_config())


def _make_config() -> Config:
    config = Config()
    # Options are templates, in which a % of the folder's name stands for more.
    config.set_main_option("script_location", str(MIGRATIONS_DIR).replace("%", "%%"))
    return config


def _check_references(connection: Connection, display_url: str) -> None:
    """SQLite's foreign keys are off while tables are made anew; nothing may dangle after it."""
    if connection.dialect.name == "sqlite":
        dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if dangling is not None:
            raise DatabaseRefused(
                display_url, f"{dangling[0]} would name rows of {dangling[2]} that are gone"
            )
