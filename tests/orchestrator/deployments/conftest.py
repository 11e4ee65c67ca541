"""A store and a server for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore
from tests.orchestrator.deployments.fake_target import FakeTarget


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget()
