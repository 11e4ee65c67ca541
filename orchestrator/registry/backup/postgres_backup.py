"""Back up a PostgreSQL database with its own programs, `pg_dump` and `pg_restore`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from sqlalchemy.engine import URL

from jobs.errors import Fault, InputError
from orchestrator.registry.database import redact_url
from orchestrator.registry.errors import BackupFailed

OPTIONS = ("--no-owner", "--no-privileges")
"""A restored registry belongs to the user that restores it."""


def copy_out(url: URL, file: Path) -> None:
    """Dump a database into a file, as of one moment. Raise BackupFailed."""
    _run_program(url, "pg_dump", "--format=custom", *OPTIONS, f"--file={file}", _name_target(url))


def copy_in(file: Path, url: URL) -> None:
    """Restore a dump, all of it or nothing. Raise BackupFailed."""
    _run_program(
        url,
        "pg_restore",
        "--single-transaction",
        "--exit-on-error",
        "--clean",
        "--if-exists",
        *OPTIONS,
        _name_target(url),
        str(file),
    )


def check_content(file: Path, url: URL) -> None:
    """Read a whole dump. Raise BackupFailed if it is truncated or corrupt."""
    _run_program(url, "pg_restore", "--file=/dev/null", str(file))


def read_revision(file: Path, url: URL) -> str | None:
    """Return the schema revision in a dump, or None if it is no dump of a registry."""
    try:
        text = _run_program(
            url, "pg_restore", "--data-only", "--table=alembic_version", "--file=-", str(file)
        )
    except BackupFailed:
        return None
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("COPY "):
            return next(lines, "").strip() or None
    return None


def _name_target(url: URL) -> str:
    """Return the option that names the database, without its password: other users see it."""
    # Not `url.set`, which keeps the password that it is told to set to None.
    shown = URL.create(
        "postgresql", url.username, None, url.host, url.port, url.database, url.query
    )
    return f"--dbname={shown.render_as_string()}"


def _run_program(url: URL, name: str, *arguments: str) -> str:
    program = shutil.which(name)
    if program is None:
        remedy = "Install PostgreSQL's client programs, of the server's version or a newer one."
        raise InputError([Fault(name, "the program is not on the PATH", remedy)])
    environment = {**os.environ, **({"PGPASSWORD": url.password} if url.password else {})}
    done = subprocess.run(
        [program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BackupFailed(redact_url(url), "; ".join(lines[:2])[:300])
    return done.stdout
