"""The spool: what could not be sent waits whole, and is sent once."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobs.errors import StoreUnreachable
from jobs.store.adapters import commit, list_adapters, verify
from jobs.store.directory import DirectoryStore
from jobs.store.objects import open_store
from jobs.store.spool import keep, send, waiting
from tests.jobs.store.made import DyingStore, Killed, adapter_folder, draft, race


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def kept(spool: Path, store: DirectoryStore, tmp_path: Path) -> Path:
    return keep(spool, store.url(""), adapter_folder(tmp_path / "exported"), draft())


def test_nothing_waits_where_nothing_was_kept(spool: Path):
    assert waiting(spool) == ([], [])


def test_what_waits_is_sent_once_and_is_gone_from_the_spool(spool, kept: Path, store):
    [entry] = waiting(spool)[0]
    assert (entry.folder, entry.draft) == (kept, draft())
    manifest = send(entry, open_store(entry.store))
    assert list_adapters(store) == [manifest]
    assert verify(store, manifest) == []
    assert waiting(spool) == ([], [])
    assert send(entry, store) is None


def test_what_can_not_be_sent_goes_on_waiting(spool: Path, kept: Path, store):
    def gone() -> None:
        raise StoreUnreachable("away")

    [entry] = waiting(spool)[0]
    for at in (1, 5, 9):
        with pytest.raises(StoreUnreachable):
            send(entry, DyingStore(store, at=at, death=gone))
        assert waiting(spool)[0] == [entry]
    assert send(entry, store) is not None


def test_what_was_committed_before_the_death_is_not_committed_twice(spool, kept, store):
    [entry] = waiting(spool)[0]
    watched = DyingStore(DirectoryStore(spool.parent / "rehearsal"))
    commit(watched, entry.folder / "adapter", entry.draft)
    with pytest.raises(Killed):
        send(entry, DyingStore(store, at=len(watched.calls), after=True))
    assert send(entry, store) == list_adapters(store)[0]
    assert len(list_adapters(store)) == 1


def _send(start: Barrier, _: int, spool: Path, url: str) -> None:
    start.wait()
    for entry in waiting(spool)[0]:
        send(entry, open_store(url))


def test_two_that_recover_at_once_commit_once(spool: Path, kept: Path, store):
    assert race(_send, spool, store.url(""), count=4) == [0] * 4
    assert len(list_adapters(store)) == 1
    assert waiting(spool) == ([], [])


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"store": 1, "draft": 2}', "[" * 99999])
def test_nonsense_in_the_spool_is_told_and_stops_nothing(spool, kept, text: str):
    (spool / "zz").mkdir()
    (spool / "zz" / "draft.json").write_text(text)
    entries, [fault] = waiting(spool)
    assert len(entries) == 1
    assert str(fault).isprintable()


def test_a_death_while_keeping_leaves_nothing_that_counts(spool: Path):
    (spool / ".new-r1").mkdir(parents=True)
    assert waiting(spool) == ([], [])
