"""What the store's tests share: a directory store in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")
