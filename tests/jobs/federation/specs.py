"""The spec of a tiny federation, for the tests of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.spec.kinds import require_kind
from jobs.spec.load import validate_spec
from jobs.spec.schema import FederatedSpec
from tests.tiny import HOLLOW_TARGETS, merge_spec, tiny_spec

SECTION = {"clients": 4, "clients_per_round": 2, "rounds": 10, "local_steps": 3}


def raw_federated(
    folder: Path, federation: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return the tiny chat spec with held-out rows and four clients, two in a round."""
    raw = tiny_spec(
        folder,
        data={"eval": str(folder / "eval.jsonl")},
        method={"targets": HOLLOW_TARGETS},
        train={"steps": None},
    )
    return {**merge_spec(raw, spec), "federation": merge_spec(SECTION, federation or {})}


def a_federation(
    folder: Path, federation: dict[str, Any] | None = None, **spec: Any
) -> FederatedSpec:
    """Return the same, validated."""
    return require_kind(validate_spec(raw_federated(folder, federation, **spec)), FederatedSpec)
