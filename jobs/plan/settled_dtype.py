"""The dtype that a run has settled: written to its folder once, and used by each later attempt."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

from pydantic import TypeAdapter, ValidationError

from jobs.errors import AlreadyExists, NotInStore
from jobs.plan.dtype_choice import DtypeChoice, set_dtype
from jobs.plan.preflight import ValidatedRun, replan
from jobs.store.runs.run_store import RunStore

DTYPE_FILE = "dtype.json"
"""The dtype, why it was chosen, and the seconds that were measured."""

_CHOICE = TypeAdapter(DtypeChoice)


def read_settled_dtype(runs: RunStore) -> DtypeChoice | None:
    """Return the choice of an earlier attempt; None if there is none or it is incomplete."""
    try:
        return _CHOICE.validate_json(runs.store.get(runs.key(DTYPE_FILE)))
    except (NotInStore, ValidationError):
        return None


def record_settled_dtype(choice: DtypeChoice, runs: RunStore) -> DtypeChoice:
    """Write the choice to the run's folder and return it, or that of an attempt that was faster."""
    text = _CHOICE.dump_json(choice)
    try:
        runs.store.put(runs.key(DTYPE_FILE), text, create_only=True)
    except AlreadyExists:
        if (existing := read_settled_dtype(runs)) is not None:
            return existing
        runs.store.put(runs.key(DTYPE_FILE), text)
    runs.events.append({"event": "dtype_settled", "time": time.time(), **asdict(choice)})
    return choice


def apply_dtype(validated: ValidatedRun, choice: DtypeChoice) -> ValidatedRun:
    """Return the run, planned in the chosen dtype. Raise InputError if that is impossible."""
    replanned = replan(validated, set_dtype(validated.spec, choice.dtype))
    return replace(replanned, plan=replace(replanned.plan, dtype=choice))
