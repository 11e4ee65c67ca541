"""Provide a control plane for each test, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore
from orchestrator.registry.database import Database
from tests.orchestrator.control.control import ControlHarness


@pytest.fixture
def control(database: Database, tmp_path: Path) -> ControlHarness:
    return ControlHarness(database, DirectoryStore(tmp_path / "store").url(""))
