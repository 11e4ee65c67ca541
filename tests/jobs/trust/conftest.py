"""Keys and a store for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore
from tests.jobs.trust.keys import Keys


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    return Keys(tmp_path, monkeypatch)
