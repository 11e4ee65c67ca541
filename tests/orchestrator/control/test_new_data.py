"""New data on a disk is detected from names, sizes and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.errors import InputError
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


def test_files_in_folders_below_count_and_hidden_ones_do_not(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("one")
    before = compute_data_fingerprint(str(tmp_path))
    for hidden in (".cache", "_temporary"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "b.jsonl").write_text("never read")
    (tmp_path / "_part.jsonl").write_text("never read")
    assert compute_data_fingerprint(str(tmp_path)) == before
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.jsonl").write_text("two")
    assert compute_data_fingerprint(str(tmp_path)) != before


def test_files_behind_a_link_to_a_folder_count(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "rows" / "more").symlink_to(tmp_path / "other")
    assert compute_data_fingerprint(str(tmp_path / "rows")) is None
    (tmp_path / "other" / "a.jsonl").write_text("one")
    assert compute_data_fingerprint(str(tmp_path / "rows")) is not None


def test_a_folder_of_too_many_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.control.new_data.MAX_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_text("row")
    with pytest.raises(InputError, match="more than 3 files"):
        compute_data_fingerprint(str(tmp_path))


def test_a_missing_file_or_a_hub_has_no_fingerprint(tmp_path: Path):
    assert compute_data_fingerprint(str(tmp_path / "none")) is None
    assert compute_data_fingerprint("somebody/rows-of-a-hub") is None
