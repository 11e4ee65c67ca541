"""The service's door on a database of each kind, and one on SQLite alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.registry.database import Database
from tests.orchestrator.api.made import Door, door_of


@pytest.fixture
def door(database: Database, tmp_path: Path) -> Iterator[Door]:
    """On each database."""
    with door_of(database, f"file://{tmp_path / 'store'}") as made:
        yield made


@pytest.fixture
def light(migrated_file: Path, tmp_path: Path) -> Iterator[Door]:
    """On SQLite alone, where the database does not matter."""
    file = tmp_path / "light.db"
    shutil.copy(migrated_file, file)
    database = Database(f"sqlite:///{file}")
    with door_of(database, f"file://{tmp_path / 'store'}") as made:
        yield made
    database.close()
