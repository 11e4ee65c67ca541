"""Journals in a bucket: several writers, a follower, an outage of the store."""

from __future__ import annotations

import pickle
from multiprocessing.synchronize import Barrier

import pytest

from jobs.errors import StoreUnreachable
from jobs.store.base import ObjectStore
from jobs.store.runs.remote_journal import RemoteJournal
from jobs.store.runs.run_store import RunStore
from tests.jobs.store.builders import DyingStore, race

KEY = "runs/r1/events.jsonl"


def test_a_follower_gets_each_event_once(store: ObjectStore):
    journal = RemoteJournal(store, KEY, urgent=True)
    assert journal.tail() == ([], 0)
    journal.append({"kind": "started", "text": "naïve"})
    first, offset = journal.tail()
    assert first == [{"kind": "started", "text": "naïve"}]
    assert journal.tail(offset) == ([], offset)
    journal.append({"step": 1})
    journal.append({"step": 2})
    second, end = journal.tail(offset)
    assert [event["step"] for event in second] == [1, 2]
    assert end == len(store.get(KEY))


def test_lines_that_are_not_urgent_are_sent_together_and_before_a_read(store: ObjectStore):
    watched = DyingStore(store)
    journal = RemoteJournal(watched, "runs/r1/metrics.jsonl", urgent=False)
    for step in range(100):
        journal.append({"step": step})
    assert watched.calls == []
    assert [event["step"] for event in journal.tail()[0]] == list(range(100))
    assert sum(call.startswith("put") for call in watched.calls) == 1


def _append_events(start: Barrier, mine: int, store: ObjectStore) -> None:
    start.wait()
    journal = RemoteJournal(store, KEY, urgent=True)
    for turn in range(5):
        journal.append({"by": mine, "turn": turn})


def test_lines_of_several_processes_are_complete_and_never_mix(store: ObjectStore):
    assert race(_append_events, store, count=4) == [0] * 4
    events, _ = RemoteJournal(store, KEY, urgent=True).tail()
    for mine in range(4):
        assert [event["turn"] for event in events if event["by"] == mine] == list(range(5))
    assert len(events) == 20


def _append_and_exit(start: Barrier, mine: int, store: ObjectStore) -> None:
    RunStore(store, "r1").metrics.append({"step": 1})


def test_lines_that_wait_at_the_end_of_a_process_are_sent(store: ObjectStore):
    assert race(_append_and_exit, store, count=1) == [0]
    assert RunStore(store, "r1").metrics.tail()[0] == [{"step": 1}]


class UnreachableStore(DyingStore):
    """A store that can be made unreachable."""

    away = False

    def _call(self, name, act):
        if self.away:
            raise StoreUnreachable("away")
        return super()._call(name, act)


def test_an_outage_of_the_store_loses_no_line(store: ObjectStore, caplog):
    away = UnreachableStore(store)
    journal = RemoteJournal(away, KEY, urgent=True)
    journal.append({"step": 1})
    away.away = True
    journal.append({"step": 2})
    journal.append({"step": 3})
    assert "are sent later" in caplog.text
    away.away = False
    assert [event["step"] for event in journal.tail()[0]] == [1, 2, 3]


@pytest.mark.parametrize("torn", [b'{"step":', b"\xff\xfe", b"[1]"], ids=range(3))
def test_a_line_torn_by_another_writer_corrupts_no_line(torn: bytes, store: ObjectStore):
    store.put(KEY, b'{"step":1}\n' + torn)
    RemoteJournal(store, KEY, urgent=True).append({"step": 2})
    assert RemoteJournal(store, KEY, urgent=True).tail()[0] == [{"step": 1}, {"step": 2}]


def test_a_journal_survives_a_pickle(store: ObjectStore):
    journal = pickle.loads(pickle.dumps(RemoteJournal(store, KEY, urgent=True)))
    journal.append({"step": 1})
    assert journal.tail()[0] == [{"step": 1}]
