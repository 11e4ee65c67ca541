"""Whether there is new data in a bucket: of what a spec names, and of nothing beside it."""

from __future__ import annotations

import pytest

from jobs.store.s3.s3_store import S3Store
from orchestrator.control.new_data import compute_data_fingerprint


@pytest.mark.parametrize("where", ["/a.jsonl", "/*.jsonl", "/?.jsonl", "/[ab].jsonl", "", "/"])
def test_what_is_named_and_changed_is_new_and_what_lies_beside_it_is_not(s3: S3Store, where: str):
    url = s3.url("rows") + where
    assert compute_data_fingerprint(url) is None
    s3.put("rows/a.jsonl", b"one")
    before = compute_data_fingerprint(url)
    assert before is not None and compute_data_fingerprint(url) == before
    s3.put("rows/below/c.json", b"of no spec")
    s3.put("rows-of-others/a.jsonl", b"of another spec")
    assert compute_data_fingerprint(url) == before
    s3.put("rows/a.jsonl", b"two")
    assert compute_data_fingerprint(url) not in (None, before)
