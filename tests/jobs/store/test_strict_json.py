"""Untrusted JSON: valid documents are read, ambiguous ones are refused."""

from __future__ import annotations

import pytest

from jobs.store.strict_json import load_strictly


def test_valid_json_is_read():
    read = load_strictly('{"a": [1, 2.5, null, true, "ï"]}'.encode())
    assert read == {"a": [1, 2.5, None, True, "ï"]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a": 1, "a": 1}', "twice"),
        (b'[{"b": {"a": 1, "a": 2}}]', "twice"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[" * 300_000 + b"]" * 300_000, "too deep"),
        (b"\xff", "utf-8"),
        (b"9" * 5000, "digits"),
        (b"", "Expecting value"),
    ],
    ids=["twice", "twice inside", "NaN", "infinity", "deep", "not UTF-8", "digits", "empty"],
)
def test_json_that_parsers_disagree_on_is_refused(data: bytes, says: str):
    with pytest.raises(ValueError, match=says):
        load_strictly(data)
