"""Whether there is new data in a bucket: of what a spec names, and of nothing beside it."""

from __future__ import annotations

import pytest

from jobs.store.s3 import S3Store
from orchestrator.service.new_data import mark_of


@pytest.mark.parametrize("where", ["/a.jsonl", "/*.jsonl", "/?.jsonl", "/[ab].jsonl", "", "/"])
def test_what_is_named_and_changed_is_new_and_what_lies_beside_it_is_not(s3: S3Store, where: str):
    url = s3.url("rows") + where
    assert mark_of(url) is None
    s3.put("rows/a.jsonl", b"one")
    before = mark_of(url)
    assert before is not None and mark_of(url) == before
    s3.put("rows/below/c.json", b"of no spec")
    s3.put("rows-of-others/a.jsonl", b"of another spec")
    assert mark_of(url) == before
    s3.put("rows/a.jsonl", b"two")
    assert mark_of(url) not in (None, before)
