"""A store for the registry to be rebuilt from, empty or full."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore
from tests.orchestrator.registry.stores import fill_store


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def full(store: DirectoryStore, tmp_path: Path) -> DirectoryStore:
    fill_store(store, tmp_path / "exported")
    return store
