"""An address is inside a place only part by part, and in one reading."""

from __future__ import annotations

import pytest

from jobs.places.places import MAX_PLACE_CHARS, PROBLEM, Places, normalize_place
from jobs.spec.address_types import AddressKind

DATA, MODEL, STORE = AddressKind.DATA, AddressKind.MODEL, AddressKind.STORE
PLACES = Places(
    data=("s3://bucket/lab/", "/data/lab/", "org/rows"),
    models=("/models/llama", "meta/*", "s3://bucket/models/small"),
    store="file:///store/projects/lab",
    closed=("file:///store",),
)
INSIDE = (
    "s3://bucket/lab/", "s3://bucket/lab/x.jsonl", "s3://bucket/lab/*.jsonl", "/data/lab",
    "/data/lab/x.jsonl", "/data/lab/*/x", "file:///data/lab/x", "org/rows",
    "hf://org/rows@main?split=train", "/store/projects/lab/runs/x", "/data/lab/%41",
)  # fmt: skip
OUTSIDE = (
    "s3://bucket", "s3://bucket/", "s3://bucket/lab2", "s3://bucket/lab2/x", "s3://bucket/la*",
    "s3://bucket/lab*/x", "s3://bucket2/lab/x", "s3://bucket/LAB/x", "/", "/data", "/data/lab2/x",
    "/data/*/x", "/data/l?b/x", "/data/[l]ab/x", "/data/lab*", "/etc/passwd", "org/other", "org",
    "hf://rows", "/store/runs/x", "/store/projects/lab2/x", "/store/projects/lab*/x",
)  # fmt: skip
AMBIGUOUS = (
    "/data/lab/../x", "/data/lab/..", "/data/lab/./x", "/data/lab//x",
    "//data/lab/x",     "s3://bucket/lab/../x", "s3://bucket//lab/x", "s3://bucket/lab/%2e%2e/x",
    "/data/lab/%2E%2e/x",     "/data/lab/%252e%252e/x", "/data/lab/a%2f..%2fb",
    "/data/lab\\..\\x",     "/data/lab/\uff0e\uff0e/x", "/data/lab/x\uff0fy",
    "/data/lab/\u2025/x", "file://host/data/lab/x",     "file://data/lab/x", "FILE:///data/lab/x",
    "S3://bucket/lab/x", "s3:///bucket/lab", "data/lab/x/y",     "./data/lab", "~/x",
    "hf://org/../rows", "hf://org/rows/more", "/data/lab/\u202ex",
    "/data/lab/x\n",     "s3://buck*t/lab/x", "s3://key:secret@bucket/lab/x", "../lab",
)  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_what_lies_inside_is_read(address: str):
    assert PLACES.find_fault("data.train", address, DATA) is None


@pytest.mark.parametrize("address", OUTSIDE)
def test_what_lies_outside_is_refused_in_one_sentence(address: str):
    fault = PLACES.find_fault("data.train", address, DATA)
    assert fault is not None and (fault.key, fault.problem) == ("data.train", PROBLEM)


@pytest.mark.parametrize("address", AMBIGUOUS)
@pytest.mark.parametrize("kind", [DATA, MODEL])
def test_what_readers_could_understand_in_two_ways_is_refused(address: str, kind: AddressKind):
    assert PLACES.find_fault("key", address, kind) is not None


def test_models_are_read_as_models_only():
    for address in ("/models/llama", "meta/llama-1b", "s3://bucket/models/small", "/data/lab/m"):
        assert PLACES.find_fault("model.path", address, MODEL) is None
    for address in ("/models/llama", "s3://bucket/models/small"):
        assert PLACES.find_fault("data.train", address, DATA) is not None
    for address in ("/models/llama2", "/models", "meta", "metal/x", "s3://bucket/models"):
        assert PLACES.find_fault("model.path", address, MODEL) is not None


def test_no_places_are_nothing_and_null_is_anything_but_the_stores_of_others():
    nothing = Places(data=(), models=(), store=PLACES.store, closed=PLACES.closed)
    anything = Places(store=PLACES.store, closed=PLACES.closed)
    assert nothing.find_fault("data.train", "/data/x", DATA) is not None
    assert nothing.find_fault("data.train", "/store/projects/lab/x", DATA) is None
    assert anything.find_fault("data.train", "/data/x", DATA) is None
    assert anything.find_fault("model.path", "any/model", MODEL) is None
    for address in ("/store/runs/x", "/store/projects/other/x", "/store/projects/*/x"):
        assert anything.find_fault("data.train", address, DATA) is not None


def test_a_place_around_the_stores_opens_none_of_them():
    places = Places(data=("/",), models=(), store=PLACES.store, closed=PLACES.closed)
    assert places.find_fault("data.train", "/etc/rows", DATA) is None
    assert places.find_fault("data.train", "/store/projects/other/x", DATA) is not None


def test_the_projects_below_the_store_of_default_are_closed_to_it():
    places = Places(data=(), models=(), store="file:///store", closed=("file:///store/projects",))
    assert places.find_fault("data.train", "/store/adapters/x", DATA) is None
    assert places.find_fault("data.train", "/store/projects/lab/x", DATA) is not None


def test_the_store_of_a_spec_is_the_projects_own():
    assert PLACES.find_fault("store", "file:///store/projects/lab/", STORE) is None
    for store in ("file:///store", "file:///store/projects/lab2", "s3://bucket/lab"):
        assert PLACES.find_fault("store", store, STORE) is not None


def test_a_normalised_place_is_a_place_and_stays_as_it_is():
    for place in ("/", "/data/lab/", "file:///data", "s3://bucket/", "org/*", "hf://rows"):
        normalised = normalize_place(place)
        assert normalize_place(normalised) == normalised
    longest = "o" * (MAX_PLACE_CHARS - len("hf://"))
    assert normalize_place(normalize_place(longest)) == f"hf://{longest}"
    with pytest.raises(ValueError, match="1025 characters"):
        normalize_place(f"{longest}o")
