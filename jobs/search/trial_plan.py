"""Plan each trial before it starts: compute its costs, and check whether it may run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import Fault, InputError
from jobs.federation.check import ValidatedFederation, check_federation
from jobs.inspect.base_digest import BaseDigest, digest_base
from jobs.plan.plan import Plan
from jobs.plan.preflight import ValidatedRun, replan, validate_run
from jobs.search.shared_cache import compute_sharing_keys
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trial_task import TrialTask
from jobs.spec.load import make_trial_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import FederatedSpec, SearchSpec
from jobs.spec.sections.search import SearchConstraints
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.data.tokenize_run import tokenize_run
from jobs.train.request import AdapterRequest


@dataclass(frozen=True)
class _PlannedConfig:
    """The plan of a config; `rejection` says why it can't run."""

    rejection: str = ""
    validated: ValidatedRun | None = None
    federation: ValidatedFederation | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)


class TrialPlanner:
    """Plans the trials of one search. Each config is planned once."""

    def __init__(self, search: SearchSpec, validated: ValidatedRun, *, run: str) -> None:
        """`validated`: the default trial. `run`: the run id of the search."""
        self._search, self._validated, self._run = search, validated, run
        self._planned: dict[str, _PlannedConfig] = {}
        self._bases: dict[str, BaseDigest] = {}

    def plan(self, record: TrialRecord) -> tuple[TrialRecord, TrialTask | None]:
        """Return the record with its costs and its task, or as rejected and None."""
        planned = self._plan_config(record.config)
        record = dataclasses.replace(record, **planned.costs)
        if planned.rejection or planned.validated is None:
            return dataclasses.replace(record, status="rejected", reason=planned.rejection), None
        request = self._make_request(planned.validated, planned.federation, record.run)
        task = TrialTask(
            record.number,
            dict(record.config),
            request,
            self._run,
            self._search.section.evaluation_key,
            compute_sharing_keys(request),
        )
        return record, task

    def check_feasible(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raise InputError if every config is rejected."""
        rejections = []
        for config in configs:
            if not (rejection := self._plan_config(config).rejection):
                return
            rejections.append(rejection)
        raise make_infeasible_error(rejections)

    def _plan_config(self, config: Mapping[str, Any]) -> _PlannedConfig:
        key = json.dumps(config, sort_keys=True, default=str)
        if key not in self._planned:
            self._planned[key] = self._validate_config(config)
        return self._planned[key]

    def _validate_config(self, config: Mapping[str, Any]) -> _PlannedConfig:
        federation = None
        try:
            spec = make_paths_absolute(make_trial_spec(self._search, config))
            if isinstance(spec, FederatedSpec):
                federation = check_federation(spec)
                trial_run = federation.validated_run
            else:
                trial_run = (
                    tokenize_run(validate_run(spec, tokenizes_next=True))
                    if _has_own_inputs(config)
                    else replan(self._validated, spec, with_history=False)
                )
        except InputError as error:
            return _PlannedConfig(rejection=str(error.faults[0]))
        rejection = find_violation(self._search.section.constraints, trial_run.plan)
        return _PlannedConfig(rejection, trial_run, federation, compute_costs(trial_run.plan))

    def _make_request(
        self, validated: ValidatedRun, federation: ValidatedFederation | None, run: str
    ) -> AdapterRequest:
        """Return the request of a trial, with checkpoints where the search evaluates it."""
        spec, train = validated.spec, validated.spec.train
        if spec.model.path not in self._bases:
            self._bases[spec.model.path] = digest_base(validated.model.folder)
        checkpoint_every = train.eval_every or train.checkpoint_every or 20
        train = train.model_copy(update={"checkpoint_every": checkpoint_every})
        validated = dataclasses.replace(validated, spec=spec.model_copy(update={"train": train}))
        request = validated.make_request(run, base=self._bases[spec.model.path], search=self._run)
        if federation is None:
            return request
        return federation.extend_request(request, RunStore(open_store(spec.store), run))


def _has_own_inputs(config: Mapping[str, Any]) -> bool:
    """Return whether the trial has a model or data of its own, which must be validated."""
    return any(key.startswith(("model.", "data.")) for key in config)


def compute_costs(plan: Plan) -> dict[str, Any]:
    """Return the figures of the plan by the fields of a record."""
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
    """Return the error that no trial can run: the most frequent reason, by its key."""
    commonest = max(reasons, key=reasons.count)
    key, _, problem = commonest.partition(": ")
    count = f"{reasons.count(commonest)} of {len(reasons)} trials are rejected for this reason"
    remedy = "Relax the constraint or change the search space."
    return InputError([Fault(key, f"{problem.rstrip('.')}; {count}", remedy)])


def find_violation(constraints: SearchConstraints, plan: Plan) -> str:
    """Return a message about the first constraint that the plan violates, or an empty text."""
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
            return f"search.constraints.{name}: {value:.4g} exceeds {limit:g}"
    return ""
