"""Shared fixtures: a directory store in its own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")
