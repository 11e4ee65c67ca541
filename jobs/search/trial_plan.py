"""What a trial would cost, by its plan, before it starts: and whether it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.errors import Fault, InputError
from jobs.federation.check import check_federation
from jobs.plan.plan import Plan
from jobs.plan.preflight import ValidatedRun, replan, validate_run
from jobs.search.trial_record import TrialRecord
from jobs.spec.load import make_trial_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import FederatedSpec, SearchSpec
from jobs.spec.sections.federation import FederationSection
from jobs.spec.sections.search import SearchConstraints


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that may run, and its row with the plan's figures."""

    record: TrialRecord
    validated: ValidatedRun
    federation: FederationSection | None = None


def plan_trial(
    search: SearchSpec, validated: ValidatedRun, record: TrialRecord
) -> PlannedTrial | TrialRecord:
    """The trial's plan, or its row as rejected, with the reason."""
    federation = None
    try:
        spec = make_paths_absolute(make_trial_spec(search, record.config))
        if isinstance(spec, FederatedSpec):
            federation = spec.section
            trial_run = check_federation(spec).validated_run
        else:
            trial_run = (
                validate_run(spec)
                if _has_own_inputs(record.config)
                else replan(validated, spec, with_history=False)
            )
    except InputError as error:
        return replace(record, status="rejected", reason=str(error.faults[0]))
    record = replace(record, **compute_costs(trial_run.plan))
    reason = find_violation(search.section.constraints, trial_run.plan)
    if reason is not None:
        return replace(record, status="rejected", reason=reason)
    return PlannedTrial(record, trial_run, federation)


def _has_own_inputs(config: Mapping[str, Any]) -> bool:
    """Whether the trial has a model or data of its own, which nobody has looked at."""
    return any(key.startswith(("model.", "data.")) for key in config)


def compute_costs(plan: Plan) -> dict[str, Any]:
    """The plan's figures under the names that rows have for them."""
    estimate = plan.estimate
    return {
        "trainable_share": max(plan.compute_share(stage) for stage in plan.stages),
        "node_bytes": float(estimate.selected.egress)
        if estimate and estimate.selected.egress is not None
        else None,
        "adapter_bytes": float(estimate.adapter) if estimate else None,
        "memory_bytes": float(estimate.selected.memory.peak) if estimate else None,
    }


def make_infeasible_error(reasons: Sequence[str]) -> InputError:
    """Why no trial may run: the commonest of the plan's reasons, by its key."""
    commonest = max(reasons, key=reasons.count)
    key, _, problem = commonest.partition(": ")
    summary = (
        f"{problem.rstrip('.')}; so it is in {reasons.count(commonest)} of {len(reasons)} trials"
    )
    return InputError([Fault(key, summary, "Ease it, or search elsewhere.")])


def find_violation(constraints: SearchConstraints, plan: Plan) -> str | None:
    """The first constraint that the plan breaks, in words."""
    estimate = plan.estimate
    figures = {
        "trainable_share": max(plan.compute_share(stage) for stage in plan.stages),
        "node_bytes_per_step": max(
            (estimate.selected.sum_egress_per_step(stage.name) for stage in plan.stages), default=0
        )
        if estimate
        else None,
        "adapter_mb": estimate.adapter / 1e6 if estimate else None,
        "memory_gb": estimate.selected.memory.peak / 1e9 if estimate else None,
    }
    for name, value in figures.items():
        limit = getattr(constraints, name)
        if limit is not None and value is not None and value > limit:
            return f"search.constraints.{name}: {value:.4g} is above {limit:g}"
    return None
