"""A commit in a directory dies or fails at every call of the file system in turn."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jobs.errors import DigestMismatch, StoreError
from jobs.store.adapters.operations import collect_garbage
from jobs.store.adapters.removal import GRACE_S
from jobs.store.blobs import get_blob_key
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import DyingStore, Killed, race
from tests.long import cases
from tests.storage.faults import Scene, check_invariants, make_scene

T = TypeVar("T")
pytestmark = pytest.mark.timeout(1800)  # hundreds of commits, on a machine that may be busy
EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.scandir", "os.listdir",
          "fcntl.flock", "test.fsync", "test.stat")  # fmt: skip
"""What Python tells its audit hooks of, each before it is done, and two calls that it keeps back.

A write has no event: what a full disk does inside one is tried with a limit on a file's size.
"""
ERRORS = {
    "disk full": errno.ENOSPC,
    "input/output error": errno.EIO,
    "time-out": errno.ETIMEDOUT,
    "not allowed any more": errno.EACCES,
}


def _make_recorder(event: str, call: Callable[..., T]) -> Callable[..., T]:
    """Return a function that raises the audit event of a system call before it."""

    def record(path: Any, **rest: Any) -> T:
        sys.audit(event, path)
        return call(path, **rest)

    return record


class Watch:
    """Counts the calls that touch a folder, and acts at the `at`-th. A hook cannot be removed."""

    def __init__(self) -> None:
        self.root, self.at, self.count = "", 0, 0
        self.error: int | None = None
        sys.addaudithook(self._hear)
        os.fsync, os.stat = (
            _make_recorder("test.fsync", os.fsync),
            _make_recorder("test.stat", os.stat),
        )

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.root or event not in EVENTS:
            return
        path = arguments[0]
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not isinstance(path, str | Path) or not str(path).startswith(self.root):
            return
        self.count += 1
        if self.count != self.at:
            return
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise OSError(self.error, os.strerror(self.error), str(path))


WATCH = Watch()


@contextmanager
def watched(root: Path, at: int, error: int | None) -> Iterator[Watch]:
    """Let the `at`-th call under `root` fail, or kill this process."""
    WATCH.root, WATCH.at, WATCH.error, WATCH.count = str(root), at, error, 0
    try:
        yield WATCH
    finally:
        WATCH.root = ""


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def record_commit_calls(store: DirectoryStore, folder: Path) -> int:
    rehearsal = make_scene(store, "rehearsal", folder)
    with watched(store.root, 0, None) as watch:
        rehearsal.attempt(store)
    return watch.count


@pytest.mark.parametrize("fault", cases(ERRORS, ["disk full"]))
def test_an_error_at_any_call_costs_nothing_that_was_committed(
    fault: str, directory: DirectoryStore, tmp_path: Path, capsys
):
    points, failed = record_commit_calls(directory, tmp_path), 0
    for at in range(1, points + 1):
        of = make_scene(DirectoryStore(tmp_path / f"store-{at}"), f"n{at}", tmp_path)
        try:
            with watched(tmp_path / f"store-{at}", at, ERRORS[fault]):
                of.attempt(of.store)
        except StoreError:
            failed += 1
        check_invariants(of)
    assert points > 40 and failed > points / 2
    with capsys.disabled():
        print(f"\n  directory, {fault}: {points} of {points} calls tried, {failed} failed it")


@pytest.mark.parametrize("fault", ["input/output error", "not allowed any more"])
def test_an_error_at_any_call_of_gc_costs_no_blob_that_a_manifest_names(
    fault: str, directory: DirectoryStore, tmp_path: Path, capsys
):
    of = make_scene(directory, "n", tmp_path)
    loose, later = get_blob_key("f" * 64), time.time() + 2 * GRACE_S
    directory.put(loose, b"nobody's")
    named = set(directory.list("blobs/")) - {loose}
    with watched(directory.root, 0, None) as watch:
        assert collect_garbage(directory, now=later).keys == (loose,)
    points, failed = watch.count, 0
    for at in range(1, points + 1):
        directory.put(loose, b"nobody's")
        try:
            with watched(directory.root, at, ERRORS[fault]):
                collect_garbage(directory, now=later)
        except StoreError:
            failed += 1
        assert set(directory.list("blobs/")) >= named, at
    check_invariants(of)
    assert failed > points / 2
    with capsys.disabled():
        print(f"\n  directory, gc, {fault}: {points} of {points} calls tried, {failed} failed it")


def _commit_and_die(start: Barrier, _: int, of: Scene, at: int) -> None:
    store = of.store
    assert isinstance(store, DirectoryStore)
    with watched(store.root, at, None):
        of.attempt(store)


@pytest.mark.long
def test_a_writer_killed_at_any_call_leaves_no_partial_adapter(tmp_path: Path, capsys):
    at = 0
    while True:
        at += 1
        of = make_scene(DirectoryStore(tmp_path / f"store-{at}"), f"n{at}", tmp_path)
        [code] = race(_commit_and_die, of, at, count=1)
        check_invariants(of)
        if code == 0:
            break  # one call more than there are
        assert code == -signal.SIGKILL
    assert at > 40
    with capsys.disabled():
        print(f"\n  directory, SIGKILL: {at - 1} of {at - 1} calls tried")


def _commit_within(start: Barrier, _: int, of: Scene, limit: int) -> None:
    # A full disk, as `write` sees it: some bytes are written, and no more.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        of.attempt(of.store)
    except StoreError:
        sys.exit(3)


@pytest.mark.parametrize("limit", [0, 1, 30, 100, 130, 700])
def test_a_full_disk_inside_a_file_leaves_no_partial_adapter(
    limit: int, directory: DirectoryStore, tmp_path: Path
):
    of = make_scene(directory, "n", tmp_path)
    assert race(_commit_within, of, limit, count=1) == [3]
    check_invariants(of)


class Flipping(DyingStore):
    """Flips a byte of the `at`-th write."""

    def put(self, key: str, data: bytes, **condition: Any) -> str:
        return super().put(key, self._flip(data), **condition)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        return self.put(key, path.read_bytes(), create_only=create_only)

    def _flip(self, data: bytes) -> bytes:
        writes = sum(call.startswith("put") for call in self.calls) + 1
        return data[:-1] + bytes([data[-1] ^ 1]) if writes == self._at else data


@pytest.mark.parametrize("at", range(1, 5))
def test_a_byte_that_flips_in_transit_is_never_committed(
    at: int, directory: DirectoryStore, tmp_path: Path
):
    of = make_scene(directory, "n", tmp_path)
    flipping = Flipping(directory, at=at, death=lambda: None)
    if at < 4:
        of.attempt(flipping)  # readers ignore claims; a corrupt blob is replaced from the file
    else:
        with pytest.raises(DigestMismatch):
            of.attempt(flipping)
    check_invariants(of)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_death_at_any_call_of_the_store_leaves_no_partial_adapter(
    after: bool, directory: DirectoryStore, tmp_path: Path, capsys
):
    rehearsal = make_scene(directory, "rehearsal", tmp_path)
    counted = DyingStore(directory)
    rehearsal.attempt(counted)
    points = len(counted.calls)
    for at in range(1, points + 1):
        of = make_scene(directory, f"n{at}", tmp_path)
        with pytest.raises(Killed):
            of.attempt(DyingStore(directory, at=at, after=after))
        check_invariants(of)
    with capsys.disabled():
        print(f"\n  directory, store calls: {points} of {points} tried")
