"""The learning rates of a retraining that leaves them to the rule: those of the adapter in use. No
torch.

The rule is fitted again from release to release. A schedule must not train at other rates for that,
and its spec, by which a training is recognised, must stay the same.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.errors import InputError, StoreError, Untrusted
from jobs.inspect.recorded_spec import find_recorded_spec
from jobs.plan.preflight import ValidatedRun, replan
from jobs.plan.rate_choice import RateChoice, get_family, make_rate_subject, set_rates
from jobs.plan.rate_rule import RateSubject
from jobs.spec.schema import RetrainSpec, RunSpec
from jobs.spec.sections.retrain import SCRATCH
from jobs.spec.sections.training import AUTO_RATE
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.base import ObjectStore

SAME_WIDTH = 1
"""In place of the width, which is that of the same base."""


def inherit_rates(
    validated: ValidatedRun, retrain_spec: RetrainSpec, store: ObjectStore, label: str
) -> ValidatedRun:
    """Return the run, planned at the rates that the adapter's run has settled.

    That is done for keys that both runs leave to the rule, where it is asked about the same: kind,
    densities, mask, task and base. Without the files of the adapter's run, nothing changes.
    """
    if not validated.plan.rates.by_rule:
        return validated
    try:
        manifest = resolve_adapter(store, label)
        recorded = find_recorded_spec(store, manifest)
    except Untrusted:
        raise
    except (InputError, StoreError):
        return validated
    is_new_base = (
        retrain_spec.section.start == SCRATCH
        and recorded is not None
        and recorded.model.path != validated.spec.model.path
    )
    if recorded is None or is_new_base:
        return validated
    choice = adopt_recorded_rates(validated.plan.rates, validated.spec, manifest, recorded)
    replanned = replan(validated, set_rates(validated.spec, choice))
    return replace(replanned, plan=replace(replanned.plan, rates=choice))


def adopt_recorded_rates(
    choice: RateChoice, spec: RunSpec, manifest: Manifest, recorded: RunSpec
) -> RateChoice:
    """Return the choice with the rates of an adapter's run where the rule made both."""
    settled_by_rule = manifest.rates.by_rule if manifest.rates else ()
    keys = [
        key
        for key in choice.by_rule
        if key in settled_by_rule and _is_same_question(key, choice, spec, recorded)
    ]
    if not keys:
        return choice
    reason = f"the run of {manifest.label}"
    if len(keys) < len(choice.by_rule):
        reason = f"{reason} ({', '.join(keys)}) and {choice.reason}"
    rates = {key: getattr(recorded.train, key) for key in keys}
    return replace(choice, **rates, reason=reason)


def _is_same_question(key: str, choice: RateChoice, spec: RunSpec, recorded: RunSpec) -> bool:
    rate = getattr(recorded.train, key)
    if rate == AUTO_RATE or recorded.model.task != spec.model.task:
        return False
    if key == "head_learning_rate":
        # None for the head that the base brings along, a number for a new one.
        return (rate is None) == (choice.head_learning_rate is None)
    return rate is not None and _describe_subject(key, spec) == _describe_subject(key, recorded)


def _describe_subject(key: str, spec: RunSpec) -> RateSubject:
    is_sparse = key == "sparse_learning_rate" or spec.method.kind == "sparse"
    stage = "sparse" if is_sparse else "other"
    return make_rate_subject(spec.method, stage, get_family(spec), SAME_WIDTH)
