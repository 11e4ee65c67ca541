"""Provide a control plane for each test, on both databases."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore
from orchestrator.registry.database import Database
from tests.jobs.trust.keys import Keys
from tests.orchestrator.control.control import ControlHarness
from tests.orchestrator.control.looker import Looker


@pytest.fixture
def control(database: Database, tmp_path: Path) -> ControlHarness:
    return ControlHarness(database, DirectoryStore(tmp_path / "store").url(""))


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    return Keys(tmp_path, monkeypatch)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may read: as root, looks run as somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="slora-open-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def looker() -> Iterator[Looker]:
    looker = Looker()
    yield looker
    for runner in looker.runners:
        runner.close()
