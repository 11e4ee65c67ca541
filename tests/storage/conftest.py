"""A real S3 server for all tests of this folder, and a separate store on it for each test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.store.base import ObjectStore
from jobs.store.local import DirectoryStore
from jobs.store.s3.s3_store import S3Store
from tests.storage.weed import BUCKET, Weed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder: they use a real store."""
    for item in items:
        if "tests/storage" in item.path.as_posix():
            item.add_marker(pytest.mark.storage)


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    server = Weed(tmp_path_factory.mktemp("weed"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store under a unique prefix, and the environment with the server."""
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    return S3Store(BUCKET, f"test-{secrets.token_hex(6)}")


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A directory store, then a bucket."""
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    bucket: S3Store = request.getfixturevalue("s3")
    return bucket
