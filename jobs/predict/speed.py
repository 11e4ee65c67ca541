"""How fast runs like this one have been: from the spec, or from past runs' own ledgers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from jobs.errors import InputError, StoreError
from jobs.spec import Spec
from jobs.store.objects import ObjectStore
from jobs.store.runs import LEDGER, SPEC, RunStore, list_runs

LOOKED_AT = 200
"""Runs of the store, newest last by name, that are asked for their speed."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second of all workers together, and how that is known."""

    tokens_per_second: float
    source: str
    fill: float | None = None
    """Tokens of a batch over the most that it could hold; None where no run tells."""


def known_speed(spec: Spec, store: ObjectStore | None) -> Speed | None:
    """What the spec says, else the last run of this model and method on such machines."""
    past = _past(spec, store) if store is not None else None
    if (said := spec.cluster.machine.tokens_per_second) is not None:
        return Speed(said, "as the spec says", past.fill if past else None)
    return past


def _past(spec: Spec, store: ObjectStore) -> Speed | None:
    for run in reversed(sorted(list_runs(store), key=_when)[-LOOKED_AT:]):
        found = _of_run(spec, RunStore(store, run))
        if found is not None:
            return found
    return None


def _when(run: str) -> str:
    """The part of a run's name that sorts by time."""
    return "-".join(run.rsplit("-", 3)[1:])


def _of_run(spec: Spec, runs: RunStore) -> Speed | None:
    if runs.store.head(runs.key(LEDGER)) is None:
        return None
    try:
        theirs: Any = yaml.safe_load(runs.read_text(SPEC))
        ledger: Any = runs.read_json(LEDGER)
        if not _alike(spec, theirs):
            return None
        tokens, seconds = float(ledger["tokens"]), float(ledger["seconds"])
        return Speed(
            tokens_per_second=tokens / seconds,
            source=f"as run {runs.run_id} had",
            fill=tokens
            / (ledger["steps"] * theirs["train"]["batch_size"] * theirs["data"]["max_length"]),
        )
    except (StoreError, InputError, ValueError, KeyError, TypeError, ZeroDivisionError):
        # A run of another time, whose papers say other things, tells nothing.
        return None
    except yaml.YAMLError:
        return None


def _alike(spec: Spec, theirs: Any) -> bool:
    """The same base, method and data on as many workers of the same kind of machine."""
    machine = theirs["cluster"].get("machine", {})
    return bool(
        theirs["model"]["path"] == spec.model.path
        and theirs["model"]["dtype"] == spec.model.dtype
        and theirs["method"]["kind"] == spec.method.kind
        and theirs["cluster"]["workers"] == spec.workers
        and machine.get("kind") == spec.cluster.machine.kind
        and theirs["data"]["max_length"] == spec.data.max_length
    )
