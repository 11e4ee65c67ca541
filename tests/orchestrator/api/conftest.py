"""The API on each kind of database, and on SQLite only."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
    with open_light_harness(migrated_file, tmp_path) as harness:
        yield harness


@pytest.fixture
def open_limited(migrated_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """Provide the API on SQLite with limits of requests and connections."""
    return partial(open_light_harness, migrated_file, tmp_path)


@contextmanager
def open_light_harness(migrated_file: Path, folder: Path, **http: float) -> Iterator[ApiHarness]:
    file = folder / "light.db"
    shutil.copy(migrated_file, file)
    database = Database(f"sqlite:///{file}")
    with open_harness(database, f"file://{folder / 'store'}", http=http) as harness:
        yield harness
    database.close()
