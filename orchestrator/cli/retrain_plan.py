"""`slora plan` of a retraining: the plan of its training in the current state. No Ray."""

from __future__ import annotations

from jobs.errors import InputError, StoreError, Untrusted
from jobs.plan.preflight import ValidatedRun, replan, validate_run
from jobs.plan.settled_dtype import apply_dtype
from jobs.retrain.detect import CURRENT, make_training_spec
from jobs.retrain.inherit_dtype import find_inherited_dtype
from jobs.retrain.inherit_rates import inherit_rates
from jobs.spec.schema import RetrainSpec
from jobs.spec.sections.retrain import SCRATCH
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.open import open_store
from jobs.train.data.tokenize_run import tokenize_run


def plan_retraining(retraining: RetrainSpec) -> tuple[ValidatedRun, str]:
    """Return the training's plan, and a sentence about its start. Read only what a plan needs."""
    checked = validate_run(retraining, quick=True, tokenizes_next=True)
    checked = _inherit(retraining, tokenize_run(checked, quick=True))
    start = _find_start(retraining)
    description = f"A retraining, which starts from {start or SCRATCH}"
    spec = make_training_spec(checked.spec, start)
    if spec != checked.spec:
        description += ". It skips the sparse stage, which is only needed to initialise the factors"
    return replan(checked, spec), description


def _inherit(retraining: RetrainSpec, checked: ValidatedRun) -> ValidatedRun:
    """Return the run in the dtype and at the rates of the adapter in use."""
    try:
        store = open_store(retraining.store)
        choice = find_inherited_dtype(retraining, store)
    except (InputError, StoreError):
        return checked  # the check of the store reports it
    checked = inherit_rates(checked, retraining, store, retraining.name)
    return checked if choice is None else apply_dtype(checked, choice)


def _find_start(retraining: RetrainSpec) -> str | None:
    """Return the adapter that a training would now start from, None for scratch."""
    name, start = retraining.name, retraining.section.start
    if start == SCRATCH:
        return None
    label = name if start == CURRENT else f"{name}@{start}"
    try:
        return resolve_adapter(open_store(retraining.store), label).label
    except Untrusted:
        raise
    except (InputError, StoreError):
        if start != CURRENT:
            raise
        return None  # there is no adapter or no store yet
