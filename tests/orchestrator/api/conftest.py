"""The service's door on a database of each kind, and one on SQLite alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.registry.database import Database
from tests.orchestrator.api.builders import ApiHarness, open_harness


@pytest.fixture
def database_api(database: Database, tmp_path: Path) -> Iterator[ApiHarness]:
    """On each database."""
    with open_harness(database, f"file://{tmp_path / 'store'}") as harness:
        yield harness


@pytest.fixture
def api(migrated_file: Path, tmp_path: Path) -> Iterator[ApiHarness]:
    """On SQLite alone, where the database does not matter."""
    file = tmp_path / "light.db"
    shutil.copy(migrated_file, file)
    database = Database(f"sqlite:///{file}")
    with open_harness(database, f"file://{tmp_path / 'store'}") as harness:
        yield harness
    database.close()
