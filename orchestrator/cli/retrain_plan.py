"""`slora plan` of a retraining: the plan of its training, as things stand now. No Ray."""

from __future__ import annotations

from jobs.errors import InputError, StoreError
from jobs.plan.preflight import ValidatedRun, replan, validate_run
from jobs.retrain.detect import CURRENT, make_training_spec
from jobs.spec.schema import RetrainSpec
from jobs.spec.sections.retrain import SCRATCH
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.open import open_store


def plan_retraining(retraining: RetrainSpec) -> tuple[ValidatedRun, str]:
    """The training's plan, and in words where it would start. Reads no more than a plan does."""
    checked = validate_run(retraining, quick=True)
    start = _find_start(retraining)
    description = f"a retraining: the training starts from {start or SCRATCH}"
    spec = make_training_spec(checked.spec, start)
    if spec != checked.spec:
        description += ", and has no sparse stage, which is there to find where to start"
    return replan(checked, spec), description


def _find_start(retraining: RetrainSpec) -> str | None:
    """The adapter that a training would go on from now; None: scratch."""
    name, start = retraining.name, retraining.section.start
    if start == SCRATCH:
        return None
    label = name if start == CURRENT else f"{name}@{start}"
    try:
        return resolve_adapter(open_store(retraining.store), label).label
    except (InputError, StoreError):
        if start != CURRENT:
            raise
        return None  # there is no adapter yet, or no store
