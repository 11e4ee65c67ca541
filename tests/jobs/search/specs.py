"""A tiny search as plain values, for the tests of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.spec.kinds import require_kind
from jobs.spec.load import validate_spec
from jobs.spec.schema import SearchSpec
from tests.tiny import merge_spec, tiny_spec

SPACE = {
    "method.rank": {"choice": [2, 4]},
    "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
}


def raw_search(folder: Path, search: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """The tiny chat spec, measured every 4 of its 12 steps, with a search section."""
    train = {"steps": 12, "eval_every": 4}
    raw = tiny_spec(folder, data={"eval": str(folder / "eval.jsonl")}, train=train)
    raw = merge_spec(raw, spec)
    return {**raw, "search": {"space": SPACE, **(search or {})}}


def a_search(folder: Path, search: dict[str, Any] | None = None, **spec: Any) -> SearchSpec:
    """The same, checked."""
    return require_kind(validate_spec(raw_search(folder, search, **spec)), SearchSpec)
