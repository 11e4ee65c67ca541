"""A commit on a real S3 server meets every fault at every request in turn."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.errors import NotInStore, StoreError, StoreRefused, UnsupportedStore
from jobs.store.adapters.operations import collect_garbage, pull
from jobs.store.adapters.removal import GRACE_S
from jobs.store.blobs import get_blob_key
from jobs.store.s3 import s3_store as s3_module
from jobs.store.s3.multipart import PART_BYTES
from jobs.store.s3.s3_store import S3Store
from jobs.store.settings import S3Settings
from tests.jobs.store.builders import _run_in_environment
from tests.long import cases
from tests.storage.fault_proxy import FAULTS, FaultProxy
from tests.storage.faults import Scene, check_invariants, make_scene
from tests.storage.weed import BUCKET, Weed

pytestmark = pytest.mark.timeout(1800)  # hundreds of commits, on a machine that may be busy
ONCE = S3Settings(attempts=1)
SHORT = S3Settings(attempts=1, read_timeout=0.5)
PATIENT = S3Settings(attempts=6, read_timeout=2)
TRANSIENT = ("503 slow down", "reset after", "time-out after")
"""Faults that boto3 retries, so that the commit succeeds."""
SHORT_OF_ALL = ("reset after",)
"""A lost response; the other faults run in the long tests."""


@pytest.fixture
def proxy(weed: Weed) -> Iterator[FaultProxy]:
    fault_proxy = FaultProxy(weed.port)
    yield fault_proxy
    fault_proxy.close()


@pytest.fixture
def direct(s3: S3Store) -> S3Store:
    """The store without the proxy, already probed."""
    assert s3.check_writable() is None
    return s3


def open_through(proxy: FaultProxy, store: S3Store, settings: S3Settings) -> S3Store:
    """Return the same store behind the proxy."""
    os.environ["AWS_ENDPOINT_URL_S3"] = proxy.url
    return S3Store(store.bucket, store.prefix, settings)


class DamagedStore:
    """Runs the commit of a scene through the proxy, and restores the environment."""

    def __init__(self, proxy: FaultProxy, settings: S3Settings) -> None:
        self._proxy, self._settings = proxy, settings

    def commit(self, of: Scene) -> Exception | None:
        assert isinstance(of.store, S3Store)
        store = open_through(self._proxy, of.store, self._settings)
        try:
            of.attempt(store)
        except StoreError as failed:
            return failed
        finally:
            del os.environ["AWS_ENDPOINT_URL_S3"]
            self._proxy.disarm()
        return None


def count_commit_requests(proxy: FaultProxy, direct: S3Store, folder: Path) -> int:
    rehearsal = make_scene(direct, "rehearsal", folder)
    proxy.arm("", 0)
    store = open_through(proxy, direct, ONCE)
    try:
        rehearsal.attempt(store)
        return proxy.count
    finally:
        del os.environ["AWS_ENDPOINT_URL_S3"]


@pytest.mark.parametrize("fault", cases(FAULTS, SHORT_OF_ALL))
def test_a_fault_at_any_request_costs_nothing_that_was_committed(
    fault: str, proxy: FaultProxy, direct: S3Store, tmp_path: Path, capsys
):
    points = count_commit_requests(proxy, direct, tmp_path)
    damaged, failed = DamagedStore(proxy, SHORT if fault.startswith("time-out") else ONCE), 0
    for at in range(1, points + 1):
        of = make_scene(direct, f"n{at}", tmp_path)
        proxy.arm(fault, at)
        failed += damaged.commit(of) is not None
        check_invariants(of)
    assert failed >= points * 0.8 or fault == "wrong checksum"
    with capsys.disabled():
        print(f"\n  s3, {fault}: {points} of {points} requests tried, {failed} failed the commit")


@pytest.mark.parametrize("fault", cases(FAULTS, SHORT_OF_ALL))
def test_a_fault_at_any_request_of_a_pull_gives_the_complete_adapter_or_nothing(
    fault: str, proxy: FaultProxy, direct: S3Store, tmp_path: Path, monkeypatch, capsys
):
    of = make_scene(direct, "n", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    settings = SHORT if fault.startswith("time-out") else ONCE
    store = S3Store(direct.bucket, direct.prefix, settings)
    proxy.arm("", 0)
    pull(store, of.first, tmp_path / "rehearsal")
    points, failed = proxy.count, 0
    for at in range(1, points + 1):
        proxy.arm(fault, at)
        try:
            pull(store, of.first, tmp_path / f"pulled-{at}")
        except StoreError:
            failed += 1
            assert not list(tmp_path.glob(f"*pulled-{at}*"))
        else:
            for path in of.before.iterdir():
                assert (tmp_path / f"pulled-{at}" / path.name).read_bytes() == path.read_bytes()
    assert points >= 7
    with capsys.disabled():
        print(f"\n  s3, pull, {fault}: {points} of {points} requests tried, {failed} failed it")


@pytest.mark.parametrize("fault", cases(["500", "reset", "not allowed", "wrong checksum"], ["500"]))
def test_a_fault_at_any_request_of_gc_costs_no_blob_that_a_manifest_names(
    fault: str, proxy: FaultProxy, direct: S3Store, tmp_path: Path, monkeypatch, capsys
):
    of = make_scene(direct, "n", tmp_path)
    loose, later = get_blob_key("f" * 64), time.time() + 2 * GRACE_S
    named = set(direct.list("blobs/"))
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        store = S3Store(direct.bucket, direct.prefix, ONCE)
        direct.put(loose, b"nobody's")
        proxy.arm("", 0)
        assert collect_garbage(store, now=later).keys == (loose,)
        points, failed = proxy.count, 0
        for at in range(1, points + 1):
            direct.put(loose, b"nobody's")
            proxy.arm(fault, at)
            try:
                collect_garbage(store, now=later)
            except StoreError:
                failed += 1
            proxy.disarm()
            assert set(direct.list("blobs/")) >= named, proxy.requests
    check_invariants(of)
    with capsys.disabled():
        print(f"\n  s3, gc, {fault}: {points} of {points} requests tried, {failed} failed it")


@pytest.mark.long
@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_does_not_fail_the_commit(
    fault: str, proxy: FaultProxy, direct: S3Store, tmp_path: Path
):
    points = count_commit_requests(proxy, direct, tmp_path)
    damaged = DamagedStore(proxy, PATIENT)
    for at in range(1, points + 1):
        of = make_scene(direct, f"n{at}", tmp_path)
        proxy.arm(fault, at)
        assert damaged.commit(of) is None, f"{fault} at request {at}"
        check_invariants(of)


def _commit(of: Scene, settings: S3Settings) -> None:
    assert isinstance(of.store, S3Store)
    store = S3Store(of.store.bucket, of.store.prefix, settings)
    of.attempt(store)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["do", "do after"], ids=["before", "after"])
def test_a_writer_killed_at_any_request_leaves_no_partial_adapter(
    moment: str, proxy: FaultProxy, direct: S3Store, tmp_path: Path, capsys
):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    at, tried = 0, 0
    while True:
        at += 1
        of = make_scene(direct, f"n{at}", tmp_path)
        environment = {**os.environ, "AWS_ENDPOINT_URL_S3": proxy.url}
        process = context.Process(target=_run_in_environment, args=(environment, _commit, of, ONCE))
        proxy.kill_client(moment, at, lambda process=process: process.pid or 0)
        process.start()
        process.join()
        proxy.disarm()
        check_invariants(of)
        if process.exitcode == 0:
            break  # one request more than there are
        assert process.exitcode == -signal.SIGKILL
        tried += 1
    assert tried >= 15
    with capsys.disabled():
        print(f"\n  s3, SIGKILL {moment}: {tried} of {tried} requests tried, probe included")


@pytest.mark.long
def test_a_server_killed_at_any_request_of_a_commit_and_started_again(tmp_path: Path, capsys):
    server = Weed(tmp_path / "weed")
    server.start()
    proxy = FaultProxy(server.port)
    os.environ.update(server.environment)
    try:
        direct = S3Store(BUCKET, f"test-{secrets.token_hex(6)}")
        assert direct.check_writable() is None
        points = count_commit_requests(proxy, direct, tmp_path)
        damaged = DamagedStore(proxy, ONCE)
        for at in range(1, points + 1):
            of = make_scene(direct, f"n{at}", tmp_path)
            proxy.arm("do" if at % 2 else "do after", at, server.kill)
            assert isinstance(damaged.commit(of), StoreError)
            server.start()
            check_invariants(of)
    finally:
        for name in server.environment:
            os.environ.pop(name, None)
        proxy.close()
        server.kill()
    with capsys.disabled():
        print(f"\n  s3, server killed: {points} of {points} requests tried")


def test_a_server_that_ignores_conditions_is_refused_before_anything_depends_on_it(
    proxy: FaultProxy, s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    proxy.lies = True
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    monkeypatch.setattr(s3_module, "_proven_stores", set[str]())
    store = S3Store(s3.bucket, s3.prefix, dataclasses.replace(PATIENT, attempts=2))
    assert "ignores If-None-Match" in (store.check_writable() or "")
    with pytest.raises(UnsupportedStore, match="ignores If-None-Match"):
        store.put("a", b"x", create_only=True)
    assert list(store.list("")) == []


def test_a_writer_without_permission_to_delete_can_commit(
    proxy: FaultProxy, s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    proxy.denied = ("DELETE",)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    assert s3.check_writable() is None
    of = make_scene(s3, "n", tmp_path)
    check_invariants(of)
    [leftover] = s3.list_leftovers()
    assert leftover.name.startswith(".tmp/probe-")
    with pytest.raises(StoreRefused):
        s3.delete("a")


def test_a_writer_who_may_not_list_the_whole_bucket_can_commit(
    proxy: FaultProxy, s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    proxy.hides_absent = True
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    assert s3.check_writable() is None and s3.head("absent") is None
    with pytest.raises(NotInStore):
        s3.get("absent")
    of = make_scene(s3, "n", tmp_path)
    check_invariants(of)
    proxy.denied = ("HEAD",)
    s3.put("ab", b"x")
    assert s3.head("a") is None
    with pytest.raises(StoreRefused):
        s3.head("ab")


def test_every_write_requests_the_configured_encryption(
    proxy: FaultProxy, s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    encryption = (("ServerSideEncryption", "aws:kms"), ("SSEKMSKeyId", "key-1"))
    store = S3Store(s3.bucket, s3.prefix, dataclasses.replace(ONCE, encryption=encryption))
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    acts = (
        lambda: store.put("a", b"x"),
        lambda: store.put_file("b", tmp_path / "large"),
        lambda: store.copy("a", "c"),
    )
    s3.put("a", b"x")
    for act in acts:
        proxy.arm("", 0)
        with suppress(StoreError):
            act()  # this server has no keys of its own, which this test does not need
        begins = [
            headers
            for line, headers in zip(proxy.requests, proxy.headers, strict=True)
            if line.split()[0] in ("PUT", "POST") and "partNumber" not in line
        ]
        assert begins[0]["x-amz-server-side-encryption"] == "aws:kms"
        assert begins[0]["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
