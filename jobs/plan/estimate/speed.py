"""The speed of runs like this one: from the spec, or from the ledgers of past runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from jobs.errors import InputError, StoreError
from jobs.spec.schema import RunSpec
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import LEDGER, SPEC, RunStore, list_runs

MAX_RUNS = 200
"""The newest runs of the store whose ledgers are read."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all workers together, and the source of that number."""

    tokens_per_second: float
    source: str
    fill: float | None = None
    """Tokens of a batch relative to its capacity; None without a past run."""


def find_speed(spec: RunSpec, store: ObjectStore | None) -> Speed | None:
    """Return the speed of the spec, or of the last comparable run."""
    previous = _find_previous_speed(spec, store) if store is not None else None
    if (tokens_per_second := spec.cluster.machine.tokens_per_second) is not None:
        return Speed(tokens_per_second, "set in the spec", previous.fill if previous else None)
    return previous


def _find_previous_speed(spec: RunSpec, store: ObjectStore) -> Speed | None:
    for run in reversed(sorted(list_runs(store), key=_get_timestamp)[-MAX_RUNS:]):
        speed = _read_run_speed(spec, RunStore(store, run))
        if speed is not None:
            return speed
    return None


def _get_timestamp(run: str) -> str:
    """Return the part of a run's id that sorts by time."""
    return "-".join(run.rsplit("-", 3)[1:])


def _read_run_speed(spec: RunSpec, runs: RunStore) -> Speed | None:
    if runs.store.head(runs.key(LEDGER)) is None:
        return None
    try:
        recorded: Any = yaml.safe_load(runs.read_text(SPEC))
        ledger: Any = runs.read_json(LEDGER)
        if not _is_comparable(spec, recorded):
            return None
        tokens, seconds = float(ledger["tokens"]), float(ledger["seconds"])
        return Speed(
            tokens_per_second=tokens / seconds,
            source=f"measured in run {runs.run_id}",
            fill=tokens
            / (ledger["steps"] * recorded["train"]["batch_size"] * recorded["data"]["max_length"]),
        )
    except (StoreError, InputError, ValueError, KeyError, TypeError, ZeroDivisionError):
        # The files of an older version may have another form: such a run is skipped.
        return None
    except yaml.YAMLError:
        return None


def _is_comparable(spec: RunSpec, recorded: Any) -> bool:
    """Return whether base, method, length and machines are the same."""
    machine = recorded["cluster"].get("machine", {})
    return bool(
        recorded["model"]["path"] == spec.model.path
        and recorded["model"]["dtype"] == spec.model.dtype
        and recorded["method"]["kind"] == spec.method.kind
        and recorded["cluster"]["workers"] == spec.workers
        and machine.get("kind") == spec.cluster.machine.kind
        and recorded["data"]["max_length"] == spec.data.max_length
        and recorded["train"].get("activation_checkpointing", False)
        == spec.train.activation_checkpointing
    )
