"""The spelling of addresses: one that cannot be meant as written is refused with the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.spec.load import validate_spec
from jobs.store.address import find_address_fault
from jobs.store.open import open_store
from jobs.train.localize import fetch_spec
from tests.tiny import tiny_spec

SPELLINGS = {
    "s3:/bucket/x": "Write s3://bucket/x.",
    "s3:bucket/x": "Write s3://bucket/x.",
    "s3:///bucket/x": "Write s3://bucket/x.",
    "S3://bucket/x": "Write s3://bucket/x.",
    "s3a://bucket/x": "Write s3://bucket/x.",
    " s3://bucket/x": "Write s3://bucket/x.",
    "s3:": "Write s3://BUCKET/PREFIX.",
    "file:/data/x": "Write file:///data/x.",
    "file:data/x": "Write file://data/x.",
    "FILE://data/x": "Write file://data/x.",
}


@pytest.mark.parametrize(("address", "remedy"), SPELLINGS.items(), ids=SPELLINGS)
def test_a_wrong_spelling_is_refused_everywhere_with_the_right_one(address: str, remedy: str):
    keys = {"model": {"path": address}, "data": {"train": address, "eval": address}}
    with pytest.raises(InputError) as caught:
        validate_spec(tiny_spec(Path("/x"), **keys, store=address))
    assert {fault.key: fault.remedy for fault in caught.value.faults} == dict.fromkeys(
        ("model.path", "data.train", "data.eval", "store"), remedy
    )
    for read in (open_store, fetch_spec):
        with pytest.raises(InputError, match=remedy):
            read(address)


@pytest.mark.parametrize("address", ["gs://b/x", "https://example.org/x"])
def test_another_scheme_is_no_folder(address: str):
    fault = find_address_fault("data.train", address)
    assert fault is not None and "is not supported" in fault.problem


@pytest.mark.parametrize("address", ["s3://key:s3cr3t@b/x", "s3:/key:s3cr3t@b/x"])
def test_credentials_are_not_shown(address: str):
    fault = find_address_fault("store", address)
    assert fault is not None and "s3cr3t" not in str(fault)


@pytest.mark.parametrize(
    "address",
    [
        "/a/b",
        "~/x",
        "org/name",
        "s3/x",
        "data/*.jsonl",
        "s3://bucket/k",
        "file:///x",
        "file://x",
        "Ä",
    ],
)
def test_a_path_a_hub_id_and_a_url_are_addresses(address: str):
    assert find_address_fault("data.train", address) is None
