"""Whether there is new data on a disk, from names, sizes and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.service.new_data import mark_of


@pytest.mark.parametrize("where", ["", "a.jsonl", "*.jsonl", "?.jsonl"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_that_changed_is_new(tmp_path: Path, scheme: str, where: str):
    place = f"{scheme}{tmp_path / where}"
    assert mark_of(place) is None
    (tmp_path / "a.jsonl").write_text("one")
    before = mark_of(place)
    assert before is not None and mark_of(place) == before
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert mark_of(place) not in (None, before)


def test_of_a_folder_what_lies_right_there_counts(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("one")
    before = mark_of(str(tmp_path))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.jsonl").write_text("never read")
    assert mark_of(str(tmp_path)) == before
    (tmp_path / "b.jsonl").write_text("two")
    assert mark_of(str(tmp_path)) != before


def test_where_nothing_lies_there_is_nothing_new(tmp_path: Path):
    assert mark_of(str(tmp_path / "none")) is None
    assert mark_of("somebody/rows-of-a-hub") is None
