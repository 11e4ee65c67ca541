"""Write and read the files of a retraining run, from which a later attempt resumes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError

from jobs.errors import AlreadyExists, NotInStore
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Digest, Label
from jobs.store.runs.run_store import RunStore

BASELINE_FILE = "baseline.json"
"""The state of the store when the run started; later attempts use the same."""


class Baseline(StrictModel):
    """The state of the store and of the data when the run started."""

    format: int = 1
    current: Label | None = None
    """The adapter that the bare name resolved to, as NAME@v2; None if there was none."""
    pointer_move: Annotated[int, Field(ge=1)] | None = None
    """The number of the pointer's last move; promotion fails if there was another one since."""
    start: Label | None = None
    """The adapter that training continues from; None: from scratch."""
    newest_version: Annotated[int, Field(ge=0)] = 0
    """The name's newest version; the version that the run commits is higher."""
    train_sha256: Digest


def read_baseline(runs: RunStore) -> Baseline | None:
    """Return the baseline of an earlier attempt; None if there is none or it is incomplete."""
    try:
        return Baseline.model_validate_json(runs.store.get(runs.key(BASELINE_FILE)))
    except (NotInStore, ValidationError):
        return None


def write_baseline(runs: RunStore, baseline: Baseline, *, overwrite: bool = False) -> Baseline:
    """Write the baseline and return it, or return that of an attempt that was faster."""
    data = baseline.model_dump_json(indent=2).encode()
    try:
        runs.store.put(runs.key(BASELINE_FILE), data, create_only=not overwrite)
    except AlreadyExists:
        existing = read_baseline(runs)
        if existing is not None:
            return existing
        runs.store.put(runs.key(BASELINE_FILE), data)
    return baseline
