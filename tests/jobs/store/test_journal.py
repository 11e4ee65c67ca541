"""The journal: one write per line, followed while it grows, incomplete lines skipped."""

from __future__ import annotations

import pickle
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobs.errors import StoreError
from jobs.store.runs.journal import Journal
from tests.jobs.store.builders import race


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "runs" / "r" / "events.jsonl")


def test_an_unwritten_journal_is_empty_and_stays_absent(journal: Journal):
    assert journal.tail() == ([], 0)
    assert not journal.path.parent.exists()


def test_a_follower_gets_each_event_once(journal: Journal):
    journal.append({"kind": "started"})
    first, offset = journal.tail()
    assert first == [{"kind": "started"}]
    assert journal.tail(offset) == ([], offset)
    journal.append({"kind": "step", "step": 1})
    journal.append({"kind": "step", "step": 2})
    second, offset = journal.tail(offset)
    assert [event["step"] for event in second] == [1, 2]
    assert offset == journal.path.stat().st_size


def test_a_half_written_last_line_is_read_once_it_is_complete(journal: Journal):
    journal.append({"step": 1})
    complete = b'{"step":2,"text":"na\xc3\xafve"}\n'
    _, offset = journal.tail()
    for cut in range(1, len(complete)):
        with journal.path.open("ab") as file:
            file.write(complete[cut - 1 : cut])
        assert journal.tail(offset) == ([], offset)
    with journal.path.open("ab") as file:
        file.write(b"\n")
    assert journal.tail(offset) == ([{"step": 2, "text": "naïve"}], offset + len(complete))


@pytest.mark.parametrize(
    "torn", [b'{"step":', b"\xff\xfe", b"[1]", b"\0" * 10, b"[" * 100_000], ids=range(5)
)
def test_a_line_torn_by_a_killed_writer_corrupts_no_other(torn: bytes, journal: Journal):
    journal.append({"step": 1})
    with journal.path.open("ab") as file:
        file.write(torn)
    journal.append({"step": 2})
    events, offset = journal.tail()
    assert events == [{"step": 1}, {"step": 2}]
    assert offset == journal.path.stat().st_size


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\u2028b", "\x1b[2J", "naïve"])
def test_any_text_stays_on_one_line(text: str, journal: Journal):
    journal.append({"text": text})
    assert journal.path.read_bytes().count(b"\n") == 1
    assert journal.tail()[0] == [{"text": text}]


def test_a_non_finite_loss_becomes_null(journal: Journal):
    journal.append({"loss": float("nan"), "all": [float("inf"), 1.5], "in": {"x": (1, 2)}})
    assert journal.tail()[0] == [{"loss": None, "all": [None, 1.5], "in": {"x": [1, 2]}}]


def _append_events(start: Barrier, mine: int, path: Path) -> None:
    start.wait()
    for turn in range(100):
        Journal(path).append({"by": mine, "turn": turn, "text": "x" * 5000})


def test_lines_of_several_writers_never_mix(journal: Journal):
    assert race(_append_events, journal.path, count=4) == [0] * 4
    events, _ = journal.tail()
    for mine in range(4):
        assert [e["turn"] for e in events if e["by"] == mine] == list(range(100))


def test_an_unwritable_journal_raises_a_store_error():
    with pytest.raises(StoreError, match=r"/proc/journal"):
        Journal(Path("/proc/journal")).append({})


def test_a_full_disk_raises_a_store_error():
    with pytest.raises(StoreError, match="No space left"):
        Journal(Path("/dev/full")).append({})


def test_a_journal_survives_a_pickle(journal: Journal):
    pickle.loads(pickle.dumps(journal)).append({"step": 1})
    assert journal.tail()[0] == [{"step": 1}]
