"""`slora plan` of a retraining: the plan of its training, as things stand now. No Ray."""

from __future__ import annotations

from jobs.errors import InputError, StoreError
from jobs.preflight import Checked, check, replanned
from jobs.retrain.door import SCRATCH, Retrain
from jobs.retrain.look import CURRENT, training_spec
from jobs.store.adapters import resolve
from jobs.store.objects import open_store


def plan_of(asked: Retrain) -> tuple[Checked, str]:
    """The training's plan, and in words where it would start. Reads no more than a plan does."""
    checked = check(asked.spec, quick=True)
    start = _start(asked)
    words = f"a retraining: the training starts from {start or SCRATCH}"
    spec = training_spec(checked.spec, start)
    if spec != checked.spec:
        words += ", and has no sparse stage, which is there to find where to start"
    return replanned(checked, spec), words


def _start(asked: Retrain) -> str | None:
    """The adapter that a training would go on from now; None: scratch."""
    name, start = asked.spec.name, asked.section.start
    if start == SCRATCH:
        return None
    wanted = name if start == CURRENT else f"{name}@{start}"
    try:
        return resolve(open_store(asked.spec.store), wanted).label
    except (InputError, StoreError):
        if start != CURRENT:
            raise
        return None  # there is no adapter yet, or no store
