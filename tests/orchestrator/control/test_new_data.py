"""Whether there is new data on a disk, from names, sizes and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.control.new_data import compute_data_fingerprint


@pytest.mark.parametrize("where", ["", "a.jsonl", "*.jsonl", "?.jsonl"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_that_changed_is_new(tmp_path: Path, scheme: str, where: str):
    place = f"{scheme}{tmp_path / where}"
    assert compute_data_fingerprint(place) is None
    (tmp_path / "a.jsonl").write_text("one")
    before = compute_data_fingerprint(place)
    assert before is not None and compute_data_fingerprint(place) == before
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert compute_data_fingerprint(place) not in (None, before)


def test_of_a_folder_what_lies_right_there_counts(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("one")
    before = compute_data_fingerprint(str(tmp_path))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.jsonl").write_text("never read")
    assert compute_data_fingerprint(str(tmp_path)) == before
    (tmp_path / "b.jsonl").write_text("two")
    assert compute_data_fingerprint(str(tmp_path)) != before


def test_where_nothing_lies_there_is_nothing_new(tmp_path: Path):
    assert compute_data_fingerprint(str(tmp_path / "none")) is None
    assert compute_data_fingerprint("somebody/rows-of-a-hub") is None
