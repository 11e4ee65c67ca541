"""New data on a disk is detected from names, sizes and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.control.new_data import compute_data_fingerprint


@pytest.mark.parametrize("pattern", ["", "a.jsonl", "*.jsonl", "?.jsonl"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_changed_file_is_new_data(tmp_path: Path, scheme: str, pattern: str):
    location = f"{scheme}{tmp_path / pattern}"
    assert compute_data_fingerprint(location) is None
    (tmp_path / "a.jsonl").write_text("one")
    before = compute_data_fingerprint(location)
    assert before is not None and compute_data_fingerprint(location) == before
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert compute_data_fingerprint(location) not in (None, before)


def test_only_files_directly_in_a_folder_count(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("one")
    before = compute_data_fingerprint(str(tmp_path))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.jsonl").write_text("never read")
    assert compute_data_fingerprint(str(tmp_path)) == before
    (tmp_path / "b.jsonl").write_text("two")
    assert compute_data_fingerprint(str(tmp_path)) != before


def test_a_missing_file_or_a_hub_has_no_fingerprint(tmp_path: Path):
    assert compute_data_fingerprint(str(tmp_path / "none")) is None
    assert compute_data_fingerprint("somebody/rows-of-a-hub") is None
