"""The heartbeat of a job: its content, its next attempt, and what an unreachable store costs."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnreachable
from jobs.store.local import DirectoryStore
from jobs.store.runs.heartbeat import HEARTBEAT, Heartbeat, has_later_attempt, read_heartbeat
from jobs.store.runs.run_store import RunStore

WAIT_S = 20.0


class Watched(DirectoryStore):
    """A directory that counts its writes, and fails those of these numbers."""

    def __init__(self, root: Path, unreachable: frozenset[int] = frozenset()) -> None:
        super().__init__(root)
        self.written, self._unreachable, self._changed = 0, unreachable, threading.Condition()

    def put(self, key: str, data: bytes, **conditions: Any) -> str:
        with self._changed:
            self.written += 1
            self._changed.notify_all()
            if self.written in self._unreachable:
                raise StoreUnreachable("unreachable")
        return super().put(key, data, **conditions)

    def wait_for(self, writes: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.written >= writes, WAIT_S)


def test_a_heartbeat_is_written_while_the_job_lives_and_ended_with_it(tmp_path):
    store = Watched(tmp_path)
    with Heartbeat(RunStore(store, "r1"), 2, interval_s=0.01):
        store.wait_for(3)
        heartbeat = read_heartbeat(store, "r1")
        assert heartbeat is not None
        assert (heartbeat["attempt"], heartbeat["ended"]) == (2, False)
    last = read_heartbeat(store, "r1")
    assert last is not None
    assert (last["ended"], last["time"] >= heartbeat["time"]) == (True, True)


def test_a_job_that_fails_ends_its_heartbeat_too(tmp_path):
    store = DirectoryStore(tmp_path)
    with pytest.raises(ZeroDivisionError), Heartbeat(RunStore(store, "r1"), 1):
        raise ZeroDivisionError
    heartbeat = read_heartbeat(store, "r1")
    assert heartbeat is not None
    assert heartbeat["ended"]


def test_an_unreachable_store_costs_beats_and_never_the_job(tmp_path):
    store = Watched(tmp_path, unreachable=frozenset({1, 2, 3}))
    with Heartbeat(RunStore(store, "r1"), 1, interval_s=0.01):
        store.wait_for(5)
        assert read_heartbeat(store, "r1") is not None


def test_the_next_attempt_takes_the_heartbeat_over(tmp_path):
    store = DirectoryStore(tmp_path)
    for attempt in (1, 2):
        with Heartbeat(RunStore(store, "r1"), attempt):
            pass
    heartbeat = read_heartbeat(store, "r1")
    assert heartbeat is not None
    assert heartbeat["attempt"] == 2


def test_a_replaced_attempt_leaves_the_heartbeat_alone(tmp_path):
    store = Watched(tmp_path)
    with Heartbeat(RunStore(store, "r1"), 2, interval_s=0.01):
        store.wait_for(2)
    before = store.get(f"runs/r1/{HEARTBEAT}")
    with Heartbeat(RunStore(store, "r1"), 1, interval_s=0.01):
        pass
    assert store.get(f"runs/r1/{HEARTBEAT}") == before
    assert has_later_attempt(RunStore(store, "r1"), 1)
    assert not has_later_attempt(RunStore(store, "r1"), 2)


CORRUPT = {
    "empty": b"",
    "a list": b"[]",
    "a word": b'{"time": "soon"}',
    "deep": b"[" * 3000,
    "not UTF-8": b"\xff",
    "an infinite attempt": b'{"time": 1, "attempt": 1e999}',
    "a time that never was": b'{"time": NaN, "attempt": 1}',
}


@pytest.mark.parametrize("written", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_heartbeat_counts_as_none(written, tmp_path):
    store = DirectoryStore(tmp_path)
    store.put(f"runs/r1/{HEARTBEAT}", written)
    assert read_heartbeat(store, "r1") is None


def test_times_are_in_seconds_since_1970(tmp_path):
    store = DirectoryStore(tmp_path)
    with Heartbeat(RunStore(store, "r1"), 1):
        pass
    assert json.loads(store.get(f"runs/r1/{HEARTBEAT}"))["time"] > 1_700_000_000
