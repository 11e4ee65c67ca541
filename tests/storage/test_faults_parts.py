"""An object in parts meets every fault at every request, sent or received: complete or absent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import AlreadyExists, StoreError
from jobs.store.s3 import multipart
from jobs.store.s3 import s3_store as s3_module
from jobs.store.s3.s3_store import S3Store
from jobs.store.settings import S3Settings
from tests.long import cases
from tests.storage.fault_proxy import FAULTS, FaultProxy
from tests.storage.weed import Weed

pytestmark = pytest.mark.timeout(900)
PART = 5 << 20
ONCE = S3Settings(attempts=1, read_timeout=2)


@pytest.fixture
def proxy(weed: Weed) -> Iterator[FaultProxy]:
    fault_proxy = FaultProxy(weed.port)
    yield fault_proxy
    fault_proxy.close()


@pytest.fixture
def damaged_store(s3: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """The store behind the proxy, with the smallest parts that a server accepts."""
    assert s3.check_writable() is None
    monkeypatch.setattr(multipart, "PART_BYTES", PART)
    monkeypatch.setattr(s3_module, "PART_BYTES", PART)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    return S3Store(s3.bucket, s3.prefix, ONCE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "large"
    file.write_bytes(os.urandom(2 * PART + 1))
    return file


@pytest.mark.parametrize("fault", cases(FAULTS, ("500 after", "reset", "wrong checksum")))
def test_an_upload_in_parts_is_complete_or_absent_and_leaves_no_parts(
    fault: str, damaged_store: S3Store, proxy: FaultProxy, path: Path, capsys
):
    proxy.arm("", 0)
    damaged_store.put_file("rehearsal", path, create_only=True)
    points, failed = proxy.count, 0
    assert points == 5  # begin, three parts, end
    for at in range(1, points + 1):
        proxy.arm(fault, at)
        try:
            damaged_store.put_file(f"n{at}", path, create_only=True)
        except StoreError:
            failed += 1
        proxy.disarm()
        info = damaged_store.head(f"n{at}")
        assert info is None or damaged_store.get(f"n{at}") == path.read_bytes()
        # An upload without a response cannot be aborted: its id is unknown.
        began_unheard = at == 1 and fault.endswith(" after")
        assert len(damaged_store.list_leftovers()) == began_unheard
        for leftover in damaged_store.list_leftovers():
            damaged_store.discard(leftover)
        if info is None:
            damaged_store.put_file(f"n{at}", path, create_only=True)
        with pytest.raises(AlreadyExists):
            damaged_store.put_file(f"n{at}", path, create_only=True)
    assert failed >= 3
    with capsys.disabled():
        print(f"\n  s3, parts up, {fault}: {points} of {points} requests tried, {failed} failed it")


@pytest.mark.parametrize("fault", cases(FAULTS, ("500 after", "reset", "wrong checksum")))
def test_a_download_in_parts_gives_the_digest_of_what_came(
    fault: str, damaged_store: S3Store, proxy: FaultProxy, path: Path, tmp_path: Path, capsys
):
    damaged_store.put_file("large", path)
    proxy.arm("", 0)
    complete = damaged_store.get_file("large", tmp_path / "rehearsal")
    assert complete == hashlib.sha256(path.read_bytes()).hexdigest()
    points, failed = proxy.count, 0
    assert points == 4  # head, three parts
    for at in range(1, points + 1):
        got = tmp_path / f"got-{at}"
        proxy.arm(fault, at)
        try:
            digest = damaged_store.get_file("large", got)
        except StoreError:
            failed += 1
            continue
        assert digest == hashlib.sha256(got.read_bytes()).hexdigest()
        assert (digest == complete) == (got.read_bytes() == path.read_bytes())
    assert failed == points or fault == "wrong checksum"
    with capsys.disabled():
        print(f"\n  s3, parts down, {fault}: {points} of {points} tried, {failed} failed it")
