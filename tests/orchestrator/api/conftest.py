"""The API on each kind of database, and on SQLite only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.registry.database import Database
from tests.orchestrator.api.builders import ApiHarness, open_harness


@pytest.fixture
def database_api(database: Database, tmp_path: Path) -> Iterator[ApiHarness]:
    """Provide the API on each kind of database."""
    with open_harness(database, f"file://{tmp_path / 'store'}") as harness:
        yield harness


@pytest.fixture
def api(migrated_file: Path, tmp_path: Path) -> Iterator[ApiHarness]:
    """Provide the API on SQLite, for tests that do not depend on the database."""
    file = tmp_path / "light.db"
    shutil.copy(migrated_file, file)
    database = Database(f"sqlite:///{file}")
    with open_harness(database, f"file://{tmp_path / 'store'}") as harness:
        yield harness
    database.close()
