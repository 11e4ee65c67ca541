"""The rows that an adapter was judged by: there as they were, or gone, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.retrain.previous_eval import find_previous_rows
from jobs.store.local import DirectoryStore
from jobs.train.request import HeldOutRows
from tests.jobs.retrain.builders import committed, lora_files
from tests.tiny import chat_rows

SHARE: dict[str, Any] = {"eval": None, "eval_fraction": 0.25}


def _rows(place: Path, **data: Any) -> HeldOutRows | str:
    adapter = committed(place, lora_files(place / "one"), spec={"data": data})
    return find_previous_rows(DirectoryStore(place / "store"), adapter)


def test_a_file_that_is_what_it_was_is_read_again(place):
    found = _rows(place)
    assert isinstance(found, HeldOutRows)
    assert (found.scan.rows, found.fraction) == (4, None)


def _changed(place: Path) -> None:
    chat_rows(place / "eval.jsonl", 5)


def _removed(place: Path) -> None:
    (place / "eval.jsonl").unlink()


def _spoilt(place: Path) -> None:
    (place / "store/runs/r1/spec.yaml").write_text("name: other")


def _lost(place: Path) -> None:
    (place / "store/runs/r1/spec.yaml").unlink()


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (_changed, "has changed since tiny@v1 was judged by it"),
        (_removed, "can't be read any more"),
        (_spoilt, "the spec of run r1 has changed since"),
        (_lost, "the files of run r1 are not in the store"),
    ],
    ids=["changed", "removed", "another spec", "no papers"],
)
def test_rows_that_are_gone_are_told(happens, said, place):
    adapter = committed(place, lora_files(place / "one"))
    happens(place)
    found = find_previous_rows(DirectoryStore(place / "store"), adapter)
    assert isinstance(found, str)
    assert said in found


def test_an_adapter_that_was_judged_by_nothing_says_so(place):
    assert "was judged by none" in str(_rows(place, eval=None))


def _folder(place: Path) -> dict[str, Any]:
    (place / "rows").mkdir()
    chat_rows(place / "rows" / "a.jsonl", 8)
    return {**SHARE, "train": str(place / "rows")}


def test_a_share_of_the_first_files_stands_while_files_come_behind_them(place):
    adapter = committed(place, lora_files(place / "one"), spec={"data": _folder(place)})
    chat_rows(place / "rows" / "b.jsonl", 5)
    found = find_previous_rows(DirectoryStore(place / "store"), adapter)
    assert isinstance(found, HeldOutRows)
    assert ([path.name for path in found.scan.files], found.file_count) == (["a.jsonl"], 1)
    assert (found.fraction, found.seed) == (0.25, 0)


@pytest.mark.parametrize("name", ["0.jsonl", "a.jsonl"], ids=["one before them", "one of them"])
def test_a_share_of_files_that_moved_is_gone(name, place):
    adapter = committed(place, lora_files(place / "one"), spec={"data": _folder(place)})
    chat_rows(place / "rows" / name, 5)
    found = find_previous_rows(DirectoryStore(place / "store"), adapter)
    assert "first files have changed" in str(found)
