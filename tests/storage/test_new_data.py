"""Detection of new data in a bucket: only of the data that a spec names."""

from __future__ import annotations

import pytest

from jobs.store.s3.s3_store import S3Store
from orchestrator.control.new_data import compute_data_fingerprint


@pytest.mark.parametrize("where", ["/a.jsonl", "/*.jsonl", "/?.jsonl", "/[ab].jsonl", "", "/"])
def test_only_changes_of_the_named_data_are_new_data(s3: S3Store, where: str):
    url = s3.url("rows") + where
    assert compute_data_fingerprint(url) is None
    s3.put("rows/a.jsonl", b"one")
    before = compute_data_fingerprint(url)
    assert before is not None and compute_data_fingerprint(url) == before
    s3.put("rows/.cache/c.json", b"of no spec")
    s3.put("rows-of-others/a.jsonl", b"of another spec")
    assert compute_data_fingerprint(url) == before
    s3.put("rows/a.jsonl", b"two")
    assert compute_data_fingerprint(url) not in (None, before)


@pytest.mark.parametrize(
    ("where", "is_named"), [("", True), ("/", True), ("/*.json", True), ("/?.jsonl", False)]
)
def test_a_file_in_a_folder_below_is_data_of_the_prefix(s3: S3Store, where: str, is_named: bool):
    s3.put("rows/a.jsonl", b"one")
    before = compute_data_fingerprint(s3.url("rows") + where)
    s3.put("rows/below/c.json", b"of the prefix")
    assert (compute_data_fingerprint(s3.url("rows") + where) != before) == is_named
