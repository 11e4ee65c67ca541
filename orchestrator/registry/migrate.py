"""Read, upgrade and downgrade the schema of a database."""

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
"""Id of PostgreSQL's advisory lock, which serialises concurrent upgrades."""

# Alembic uses module-level proxies, so a process runs one migration at a time.
_migration_lock = threading.Lock()


@dataclass(frozen=True)
class SchemaState:
    """The schema revision of a database."""

    database: str
    revision: str | None
    """None if the database has no tables of slora."""
    newest: str
    """The revision that this version of slora needs."""

    @property
    def is_current(self) -> bool:
        """Return whether the registry can be used without an upgrade."""
        return self.revision == self.newest


def list_revisions() -> list[str]:
    """List all revisions, oldest first."""
    return [script.revision for script in reversed(list(_load_scripts().walk_revisions()))]


def read_schema(url: str) -> SchemaState:
    """Read the revision of a database without changing it or creating its file."""
    parsed_url = parse_database_url(url)
    if parsed_url.get_backend_name() == "sqlite" and not Path(parsed_url.database or "").exists():
        return SchemaState(redact_url(parsed_url), None, list_revisions()[-1])
    with _connect(url) as (connection, display_url):
        return SchemaState(display_url, _read_revision(connection), list_revisions()[-1])


def upgrade(url: str, target: str | None = None) -> SchemaState:
    """Upgrade the tables to `target`, by default the newest revision. Rows are kept."""
    return _migrate(url, target or list_revisions()[-1], command.upgrade)


def downgrade(url: str, target: str) -> SchemaState:
    """Downgrade the tables to `target` or NO_REVISION; the data of newer tables is lost."""
    return _migrate(url, target, command.downgrade)


def open_registry(url: str) -> Database:
    """Open a database that has the newest revision. Raise WrongSchema."""
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
    """Open one connection with one transaction that blocks other migrations."""
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
    # Options are templates, so a % in the folder's name must be escaped.
    config.set_main_option("script_location", str(MIGRATIONS_DIR).replace("%", "%%"))
    return config


def _check_references(connection: Connection, display_url: str) -> None:
    """Check references on SQLite, whose foreign keys are off while tables are recreated."""
    if connection.dialect.name == "sqlite":
        dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if dangling is not None:
            raise DatabaseRefused(
                display_url, f"{dangling[0]} references rows of {dangling[2]} that do not exist"
            )
