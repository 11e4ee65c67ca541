"""Back up a registry to one file, and restore it: only where no service would lose its rows."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import URL

from jobs.errors import Fault, InputError
from orchestrator.registry.backup import postgres_backup, sqlite_backup
from orchestrator.registry.counts import count_rows
from orchestrator.registry.database import Database, parse_database_url
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import WrongSchema
from orchestrator.registry.migrate import (
    NO_REVISION,
    SchemaState,
    downgrade,
    list_revisions,
    open_registry,
    read_schema,
    upgrade,
)
from orchestrator.registry.tables import LeaseRow

TABLES_OF_A_NEW_REGISTRY = frozenset({"instance", "leases"})
"""Tables whose rows nobody misses."""


def back_up(url: str, file: Path) -> None:
    """Write the registry as of one moment to a new file, which only its owner may read.

    The file holds the digests of tokens. Raise WrongSchema, BackupFailed or InputError.
    """
    parsed = parse_database_url(url)
    open_registry(url).close()
    if file.exists():
        raise InputError([Fault("FILE", f"{file} exists", "Use a new file.")])
    # The name appears when the backup is complete.
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if _is_sqlite(parsed):
            sqlite_backup.copy_out(Path(parsed.database or ""), partial)
        else:
            postgres_backup.copy_out(parsed, partial)
        _sync_file(partial)
        os.link(partial, file)
    except OSError as error:
        problem = f"{file} cannot be written: {error.strerror or error}"
        raise InputError([Fault("FILE", problem, "Use another folder.")]) from error
    finally:
        partial.unlink(missing_ok=True)


def restore(url: str, file: Path, *, replace: bool = False) -> SchemaState:
    """Restore a backup and upgrade its tables. Raise InputError, WrongSchema or BackupFailed.

    A registry with rows is only replaced with `replace`, and never while a service uses it.
    """
    parsed = parse_database_url(url)
    revision = (
        sqlite_backup.read_revision(file)
        if _is_sqlite(parsed)
        else postgres_backup.read_revision(file, parsed)
    )
    if revision is None:
        kind = "SQLite" if _is_sqlite(parsed) else "PostgreSQL"
        problem = f"{file} is not a backup of a registry on {kind}"
        raise InputError([Fault("FILE", problem, "Use a file of `slora registry backup`.")])
    if revision not in list_revisions():
        raise WrongSchema(str(file), revision, list_revisions()[-1])
    schema = read_schema(url)
    if schema.revision is not None:
        _check_replaceable(url, schema, replace=replace)
    if _is_sqlite(parsed):
        sqlite_backup.copy_in(file, Path(parsed.database or ""))
    else:
        postgres_backup.check_content(file, parsed)
        if schema.revision is not None:
            # Tables that are newer than the backup would stay beside the restored ones.
            downgrade(url, NO_REVISION)
        postgres_backup.copy_in(file, parsed)
    return upgrade(url)


def _check_replaceable(url: str, schema: SchemaState, *, replace: bool) -> None:
    if not schema.is_current:
        if not replace:
            raise _refuse(f"{schema.database} has schema {schema.revision}")
        return
    database = Database(url)
    try:
        with database.read() as session:
            holder = session.scalar(
                select(LeaseRow.holder).where(LeaseRow.expires_at > now()).limit(1)
            )
            rows = count_rows(session)
    finally:
        database.close()
    if holder is not None:
        problem = f"{holder} uses {schema.database}"
        remedy = "Stop all its services, and wait until their leases have expired."
        raise InputError([Fault("database", problem, remedy)])
    filled = [
        f"{count:,} {name}"
        for name, count in rows.items()
        if count and " " not in name and name not in TABLES_OF_A_NEW_REGISTRY
    ]
    if filled and not replace:
        raise _refuse(f"{schema.database} has {', '.join(filled)}")


def _refuse(problem: str) -> InputError:
    remedy = "Use an empty database, or --replace to lose what it holds."
    return InputError([Fault("database", problem, remedy)])


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
