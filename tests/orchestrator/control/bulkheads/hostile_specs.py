"""A Hypothesis strategy of specs: the leaves of the JSON Schema, with extreme numbers and paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from jobs.spec.messages import list_keys
from jobs.spec.schema import SECTIONS, RunSpec
from tests.tiny import HOLLOW_TARGETS, tiny_spec

SCHEMA = RunSpec.model_json_schema()
INTEGERS = [0, 1, -1, 2, 7, 64, 2**24, 10**6, 10**7, 10**9, 2**31 - 1, 2**31, 2**53, 10**18,
            2**63 - 1, 2**63, -(2**63), 10**320, -(10**320), 10**4299, 10**5000, -(10**5000),
            True]  # fmt: skip
REALS = [0.0, -0.0, 1.0, 0.5, 1e-300, 5e-324, 1e-9, 1e9, 1e15, 1.7e308, -1.7e308, float("inf"),
         float("-inf"), float("nan"), 10**400, 2**63]  # fmt: skip
TEXTS = ["", "a", "a" * 63, "a" * 64, "x" * 5000, "..", "a/b", "a\x00b", "\ud800", "\x1b[2J",
         "é", "²", "current", "v3", "v999999999", "v9999999999", "random", "os:system", "math:nan",
         "a.b:C"]  # fmt: skip
ROOT_PATHS = ["/", "/dev/null", "/proc/self/environ", "/nonexistent", "~", "~nobody/x", "~\x00",
              ".", "file://", "file:///", "file://host/x", "s3://", "s3:///k", "s3://A_B/k",
              "s3://b\x00",
              "hf://", "hf://a", "hf://a/b?x", "org/name", "http://127.0.0.1:1/x",
              "/" + "d/" * 2000, "/" + "n" * 300, "[", "/tmp/[", "/tmp/\ud800"]  # fmt: skip
MINIMAL_SECTIONS: Mapping[str, dict[str, Any]] = {
    "search": {"space": {"method.rank": {"choice": [1, 2]}}, "scheduler": "none"},
    "retrain": {"gate": {"baseline": "none"}},
    "federation": {"clients": 2, "clients_per_round": 2, "rounds": 2, "local_steps": 1},
}
MAX_CHANGES = 6


@dataclass(frozen=True)
class _Leaf:
    """A key of the schema that holds a value, and the schema of the value."""

    path: tuple[str, ...]
    schema: Mapping[str, Any]


def list_leaves() -> list[_Leaf]:
    """List every key and section of the schema."""
    return list(_iterate_leaves((), SCHEMA))


def make_specs(folder: Path) -> st.SearchStrategy[dict[str, Any]]:
    """Make specs of all kinds: a valid one for the files of `folder`, with some keys changed."""
    base = tiny_spec(folder)
    leaves = st.sampled_from(list_leaves())
    changes = st.lists(
        leaves.flatmap(lambda leaf: st.tuples(st.just(leaf), _make_values(leaf.schema, folder))),
        max_size=MAX_CHANGES,
    )
    sections = st.sampled_from([(), (), *((name,) for name in SECTIONS), ("search", "federation")])
    return st.builds(lambda names, pairs: _apply(base, names, pairs), sections, changes)


def _apply(
    base: Mapping[str, Any], sections: tuple[str, ...], pairs: list[tuple[_Leaf, Any]]
) -> dict[str, Any]:
    spec = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for section in sections:
        spec[section] = dict(MINIMAL_SECTIONS[section])
    if "federation" in sections:
        spec["train"].pop("steps", None)
    for leaf, value in pairs:
        # A section that the spec has not would make it invalid by what it lacks.
        if leaf.path[0] in SECTIONS and leaf.path[0] not in sections:
            continue
        inner: Any = spec
        for part in leaf.path[:-1]:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        inner[leaf.path[-1]] = value
        if leaf.path == ("train", "epochs"):
            spec["train"].pop("steps", None)
    return spec


def _iterate_leaves(path: tuple[str, ...], schema: Mapping[str, Any]) -> Iterator[_Leaf]:
    for name, inner in _resolve(schema).get("properties", {}).items():
        yield _Leaf((*path, name), inner)
        for option in _list_options(inner):
            yield from _iterate_leaves((*path, name), option)


def _resolve(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in schema:
        resolved: Mapping[str, Any] = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        return resolved
    return schema


def _list_options(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    schema = _resolve(schema)
    return [_resolve(option) for option in schema.get("anyOf", [schema])]


def _defer_values(schema: Mapping[str, Any], folder: Path) -> st.SearchStrategy[Any]:
    return st.deferred(lambda: _make_values(schema, folder))


def _make_values(schema: Mapping[str, Any], folder: Path) -> st.SearchStrategy[Any]:
    """Make values that the schema mostly allows, and now and then anything else."""
    allowed = st.one_of([_make_allowed(option, folder) for option in _list_options(schema)])
    return st.integers(0, 9).flatmap(lambda die: _make_anything(folder) if die == 0 else allowed)


def _make_anything(folder: Path) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from(INTEGERS),
        st.sampled_from(REALS),
        _make_texts(folder),
        st.none(),
        st.sampled_from([[], {}, [[]], {"a": 1}, {1: 2}, {10**5000: 1}, [10**5000]]),
    )


def _make_texts(folder: Path) -> st.SearchStrategy[str]:
    near = [str(folder / name) for name in ("model", "train.jsonl", "*.jsonl", "**", "", "store")]
    paths = [*ROOT_PATHS, *near, *(f"file://{path}" for path in near)]
    return st.one_of(st.sampled_from(TEXTS), st.sampled_from(paths), st.text(max_size=20))


def _make_allowed(schema: Mapping[str, Any], folder: Path) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema.get("type")
    if kind == "integer":
        return _make_integers(schema)
    if kind == "number":
        return _make_numbers(schema)
    if kind == "boolean":
        return st.booleans()
    if kind == "null":
        return st.none()
    if kind == "string":
        return _make_texts(folder)
    if kind == "array":
        return _make_lists(schema, folder)
    if kind == "object":
        return _make_objects(schema, folder)
    return _make_anything(folder)


def _make_integers(schema: Mapping[str, Any]) -> st.SearchStrategy[int]:
    low, high = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63)
    ends = [low, low + 1, high, high - 1]
    return st.one_of(
        st.integers(low, high), st.integers(low, min(high, low + 9)), st.sampled_from(ends)
    )


def _make_numbers(schema: Mapping[str, Any]) -> st.SearchStrategy[float]:
    low = float(schema.get("minimum", schema.get("exclusiveMinimum", -1e15)))
    high = float(schema.get("maximum", schema.get("exclusiveMaximum", 1e15)))
    ends = [low, high, (low + high) / 2, 5e-324, 1e-300, int(high)]
    return st.one_of(st.floats(low, high), st.sampled_from(ends))


def _make_lists(schema: Mapping[str, Any], folder: Path) -> st.SearchStrategy[list[Any]]:
    if "prefixItems" in schema:
        items = [_make_values(item, folder) for item in schema["prefixItems"]]
        return st.tuples(*items).map(list)
    texts = [*HOLLOW_TARGETS, "nothing", "(", ".*", "a" * 300, "warm", 1, 64, 0.5, 10**9, None]
    item = _make_values(schema.get("items", {}), folder) | st.sampled_from(texts)
    return st.lists(item, max_size=4)


def _make_objects(schema: Mapping[str, Any], folder: Path) -> st.SearchStrategy[dict[str, Any]]:
    properties = schema.get("properties", {})
    if properties:
        inner = {name: _defer_values(properties[name], folder) for name in properties}
        required = {name: inner.pop(name) for name in schema.get("required", ())}
        return st.fixed_dictionaries(required, optional=inner)
    value = _make_values(schema.get("additionalProperties") or {}, folder)
    keys = st.sampled_from([*list_keys(), "prompt", "text", "nothing", "model.path.x", ""])
    return st.dictionaries(keys, value, max_size=3)
