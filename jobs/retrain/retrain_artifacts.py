"""What a retraining keeps in its run's folder, so that it can be gone on with at every seam."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError

from jobs.errors import AlreadyExists, NotInStore
from jobs.spec.kinds import KINDS
from jobs.spec.load import dump_spec
from jobs.spec.schema import RetrainSpec
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Digest, Label
from jobs.store.runs.pinned_spec import pin_spec as keep
from jobs.store.runs.run_store import RunStore

RETRAIN_FILE = KINDS["retrain"].spec_file
"""What was asked, whole."""
BASELINE_FILE = "looked.json"
"""What was found when the run first looked; later attempts go by it."""


class Baseline(StrictModel):
    """How things stood when the run began."""

    format: int = 1
    current: Label | None = None
    """The adapter that the bare name meant, as NAME@v2; None where there was none."""
    pointer_move: Annotated[int, Field(ge=1)] | None = None
    """The number of the pointer's last move: a promotion counts only while it still is."""
    start: Label | None = None
    """The adapter that the training goes on from; None: from scratch."""
    newest_version: Annotated[int, Field(ge=0)] = 0
    """The name's newest version then: what the run commits has a higher number."""
    train_sha256: Digest


def pin_spec(retrain_spec: RetrainSpec, runs: RunStore) -> None:
    """Keeps what was asked; a run that goes on must be asked the same. Raises InputError."""
    keep(dump_spec(retrain_spec), runs, RETRAIN_FILE, kind="retraining")


def read_baseline(runs: RunStore) -> Baseline | None:
    """What an earlier attempt found; None where none got so far, or was cut short there."""
    try:
        return Baseline.model_validate_json(runs.store.get(runs.key(BASELINE_FILE)))
    except (NotInStore, ValidationError):
        return None


def write_baseline(runs: RunStore, baseline: Baseline, *, overwrite: bool = False) -> Baseline:
    """Keeps it, unless another attempt has meanwhile: then what that one found counts."""
    data = baseline.model_dump_json(indent=2).encode()
    try:
        runs.store.put(runs.key(BASELINE_FILE), data, create_only=not overwrite)
    except AlreadyExists:
        existing = read_baseline(runs)
        if existing is not None:
            return existing
        runs.store.put(runs.key(BASELINE_FILE), data)
    return baseline
