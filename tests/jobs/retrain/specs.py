"""The spec of a tiny retraining, for the tests of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.spec.kinds import require_kind
from jobs.spec.load import validate_spec
from jobs.spec.schema import RetrainSpec
from tests.tiny import HOLLOW_TARGETS, merge_spec, tiny_spec


def raw_retrain(folder: Path, retrain: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Return the tiny chat spec with held-out rows and a retrain section as plain values."""
    data, method = {"eval": str(folder / "eval.jsonl")}, {"targets": HOLLOW_TARGETS}
    raw = merge_spec(tiny_spec(folder, data=data, method=method), spec)
    return {**raw, "retrain": retrain or {}}


def a_retrain(folder: Path, retrain: dict[str, Any] | None = None, **spec: Any) -> RetrainSpec:
    """Return the same, validated."""
    return require_kind(validate_spec(raw_retrain(folder, retrain, **spec)), RetrainSpec)
