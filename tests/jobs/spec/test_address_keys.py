"""Every key of the spec that names a file or a store is marked, so that no check forgets one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.spec.address_keys import list_address_keys, list_addresses
from jobs.spec.address_types import AddressKind
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from tests.orchestrator.control.builders import make_spec

OTHER_TEXTS = {
    "data.columns.*": "names of columns",
    "federation.column": "the name of a column",
    "method.targets[]": "patterns of the names of layers",
    "method.train_tokens[]": "tokens",
}
"""The keys with free text that are no addresses. A new key is here, or has a type of an address."""


def walk_free_texts(schema: dict[str, Any], node: dict[str, Any], key: str) -> Iterator[str]:
    """Yield the keys of texts that neither a pattern nor a list of values bounds."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for option in (*node.get("anyOf", ()), *node.get("allOf", ()), *node.get("oneOf", ())):
        yield from walk_free_texts(schema, option, key)
    if node.get("type") == "string" and not node.keys() & {"pattern", "enum", "const"}:
        yield key
    for name, child in node.get("properties", {}).items():
        yield from walk_free_texts(schema, child, f"{key}.{name}" if key else name)
    if isinstance(items := node.get("items"), dict):
        yield from walk_free_texts(schema, items, f"{key}[]")
    if isinstance(extra := node.get("additionalProperties"), dict):
        yield from walk_free_texts(schema, extra, f"{key}.*")


def test_each_free_text_of_the_schema_is_an_address_or_is_known_to_be_none():
    schema = RunSpec.model_json_schema()
    assert {*walk_free_texts(schema, schema, "")} == {*list_address_keys(), *OTHER_TEXTS}


def test_the_keys_of_addresses_have_their_kinds():
    assert list_address_keys() == {
        "model.path": AddressKind.MODEL,
        "data.train": AddressKind.DATA,
        "data.eval": AddressKind.DATA,
        "store": AddressKind.STORE,
    }


def test_the_addresses_of_the_trials_of_a_search_are_listed_too():
    space = {
        "data.train": {"choice": ["/one.jsonl", "/two.jsonl"]},
        "model.path": {"grid": ["/m"]},
        "train.learning_rate": {"choice": [0.1, 0.2]},
    }
    spec = validate_spec(make_spec(search={"space": space, "scheduler": "none"}))
    listed = [(item.key, item.text) for item in list_addresses(spec)]
    assert listed == [
        ("model.path", "/models/tiny"), ("search.space.model.path", "/m"),
        ("data.train", "/data/train.jsonl"), ("search.space.data.train", "/one.jsonl"),
        ("search.space.data.train", "/two.jsonl"), ("data.eval", "/data/eval.jsonl"),
        ("store", "file:///store"),
    ]  # fmt: skip
