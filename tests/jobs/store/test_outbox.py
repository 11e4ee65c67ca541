"""The outbox: an adapter that could not be sent is kept complete, and is sent once."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobs.errors import StoreUnreachable
from jobs.store.adapters.operations import commit, scan_adapters, verify_adapter
from jobs.store.adapters.outbox import add_to_outbox, list_outbox, send_entry
from jobs.store.local import DirectoryStore
from jobs.store.open import open_store
from tests.jobs.store.builders import DyingStore, Killed, make_adapter_folder, make_draft, race


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def entry_folder(outbox: Path, store: DirectoryStore, tmp_path: Path) -> Path:
    return add_to_outbox(
        outbox, store.url(""), make_adapter_folder(tmp_path / "exported"), make_draft()
    )


def test_an_absent_outbox_is_empty(outbox: Path):
    assert list_outbox(outbox) == ([], [])


def test_an_entry_is_sent_once_and_then_removed(outbox, entry_folder: Path, store):
    [entry] = list_outbox(outbox)[0]
    assert (entry.folder, entry.draft) == (entry_folder, make_draft())
    manifest = send_entry(entry, open_store(entry.store_url))
    assert scan_adapters(store)[0] == [manifest]
    assert verify_adapter(store, manifest) == []
    assert list_outbox(outbox) == ([], [])
    assert send_entry(entry, store) is None


def test_an_entry_that_cannot_be_sent_stays(outbox: Path, entry_folder: Path, store):
    def fail() -> None:
        raise StoreUnreachable("away")

    [entry] = list_outbox(outbox)[0]
    for at in (1, 5, 9):
        with pytest.raises(StoreUnreachable):
            send_entry(entry, DyingStore(store, at=at, death=fail))
        assert list_outbox(outbox)[0] == [entry]
    assert send_entry(entry, store) is not None


def test_an_entry_committed_before_a_crash_is_not_committed_twice(outbox, entry_folder, store):
    [entry] = list_outbox(outbox)[0]
    watched = DyingStore(DirectoryStore(outbox.parent / "rehearsal"))
    commit(watched, entry.folder / "adapter", entry.draft)
    with pytest.raises(Killed):
        send_entry(entry, DyingStore(store, at=len(watched.calls), after=True))
    assert send_entry(entry, store) == scan_adapters(store)[0][0]
    assert len(scan_adapters(store)[0]) == 1


def _send(start: Barrier, _: int, outbox: Path, url: str) -> None:
    start.wait()
    for entry in list_outbox(outbox)[0]:
        send_entry(entry, open_store(url))


def test_two_senders_at_once_commit_once(outbox: Path, entry_folder: Path, store):
    assert race(_send, outbox, store.url(""), count=4) == [0] * 4
    assert len(scan_adapters(store)[0]) == 1
    assert list_outbox(outbox) == ([], [])


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"store": 1, "draft": 2}', "[" * 99999])
def test_an_unreadable_entry_is_reported_and_stops_nothing(outbox, entry_folder, text: str):
    (outbox / "zz").mkdir()
    (outbox / "zz" / "draft.json").write_text(text)
    entries, [fault] = list_outbox(outbox)
    assert len(entries) == 1
    assert str(fault).isprintable()


def test_a_death_while_adding_leaves_no_entry(outbox: Path):
    (outbox / ".new-r1").mkdir(parents=True)
    assert list_outbox(outbox) == ([], [])
