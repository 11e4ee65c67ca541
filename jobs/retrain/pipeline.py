"""Run a retraining from the baseline to the decision; each step can be repeated after a crash.

    baseline -> fine-tune -> evaluate -> gate -> promote, or keep the current adapter

Where a service started the job, the service moves the pointer: the job records what to do.

The result of a step is in the run's folder or in the store before the next step starts, so an
attempt after a crash skips what is done.
"""

from __future__ import annotations

import time
from typing import Any

from jobs.errors import InputError, NotInStore, SupersededAttempt
from jobs.plan.dtype_choice import AUTO, set_dtype
from jobs.plan.handover import validate_or_reuse
from jobs.plan.preflight import ValidatedRun, replan
from jobs.plan.settled_dtype import apply_dtype, read_settled_dtype, record_settled_dtype
from jobs.retrain.compatibility import find_start_faults
from jobs.retrain.detect import NoNewData, make_training_spec, snapshot_state
from jobs.retrain.gate import GateVerdict, MetricByRows, apply_gate
from jobs.retrain.inherit_dtype import find_inherited_dtype
from jobs.retrain.inherit_rates import inherit_rates
from jobs.retrain.previous_eval import find_previous_rows
from jobs.retrain.retrain_artifacts import Baseline, read_baseline, write_baseline
from jobs.spec.load import dump_spec
from jobs.spec.schema import RetrainSpec
from jobs.store.adapters.listing import find_newest, split_name
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import (
    list_versions,
    promote_after,
    promote_if_unset,
    resolve_adapter,
)
from jobs.store.adapters.pointer import PointerConflict
from jobs.store.adapters.verify import check_files
from jobs.store.runs.heartbeat import has_later_attempt
from jobs.store.runs.run_store import LOW_RANK_INIT, MASKS, PLAN, SPEC, RunStore
from jobs.train.data.tokenize_run import tokenize_run
from jobs.train.monitor.phases import PhaseClock, PhaseStart
from jobs.train.request import (
    EVALUATION_FILE,
    EvaluationRequest,
    HeldOutRows,
    RunAttempt,
    TrainingRequest,
)


class Retraining:
    """One attempt of one retraining run. It connects to Ray only when a step needs workers."""

    def __init__(
        self,
        retrain_spec: RetrainSpec,
        runs: RunStore,
        attempt: int,
        *,
        leaves_pointer: bool = False,
        phases: PhaseClock | None = None,
    ) -> None:
        self._retrain_spec, self._runs, self._attempt = retrain_spec, runs, attempt
        self._leaves_pointer = leaves_pointer
        self._connected = self._has_workers = False
        self._phases = phases or PhaseClock(runs.phase_events, PhaseStart.begin(attempt))

    def run(self) -> None:
        """Run all steps that are not done yet.

        Raise InputError, TrainingFailed, StoreError, Unreachable or SupersededAttempt.
        """
        spec = self._inherit_dtype()
        validated_run = self._inherit_rates(validate_or_reuse(spec, self._runs.run_id))
        baseline = self._load_baseline(validated_run)
        if baseline is None:
            return
        validated_run = self._settle_dtype(tokenize_run(validated_run), spec)
        validated_run = replan(
            validated_run,
            make_training_spec(validated_run.spec, baseline.start),
            with_history=False,
        )
        request = validated_run.make_request(self._runs.run_id, parent=baseline.start)
        adapter = self._find_committed(baseline) or self._train(validated_run, baseline, request)
        verdict = self._apply_gate(baseline, adapter, request)
        self._promote_or_keep(baseline, adapter, verdict)

    def _inherit_dtype(self) -> RetrainSpec:
        """Return the spec in the dtype of an earlier attempt, or else of the current adapter."""
        spec, runs = self._retrain_spec, self._runs
        choice = find_inherited_dtype(spec, runs.store)
        if choice is not None:
            choice = read_settled_dtype(runs) or record_settled_dtype(choice, runs)
        return spec if choice is None else set_dtype(spec, choice.dtype)

    def _inherit_rates(self, validated_run: ValidatedRun) -> ValidatedRun:
        """Return the run at the rates of the adapter that was current at the first attempt."""
        baseline = read_baseline(self._runs)
        label = baseline.current if baseline is not None else self._retrain_spec.name
        if label is None:
            return validated_run
        return inherit_rates(validated_run, self._retrain_spec, self._runs.store, label)

    def _settle_dtype(self, validated_run: ValidatedRun, spec: RetrainSpec) -> ValidatedRun:
        if (choice := read_settled_dtype(self._runs)) is not None:
            return apply_dtype(validated_run, choice)
        if spec.model.dtype != AUTO:
            return validated_run
        # Imported here because a run without new data must load neither Ray nor torch.
        from jobs.train.cluster.settle_dtype import settle_dtype

        self._connect_ray()
        return settle_dtype(validated_run, spec, self._runs)

    def _load_baseline(self, validated_run: ValidatedRun) -> Baseline | None:
        """Return the state when the run started; None if there is no new data."""
        store, spec = self._runs.store, validated_run.spec
        sha256 = str(validated_run.train_scan.sha256)
        baseline = read_baseline(self._runs)
        if baseline is not None:
            return self._refresh_baseline(baseline, sha256)
        snapshot = snapshot_state(store, spec, self._retrain_spec.section.start, sha256)
        if isinstance(snapshot, NoNewData):
            self._emit_event("no_new_data", adapter=snapshot.adapter, why=snapshot.reason)
            return None
        is_unset = snapshot.current is not None and snapshot.pointer_move is None
        if is_unset and not self._leaves_pointer:
            assert snapshot.current is not None
            # Without a pointer the bare name resolves to the newest version, which is unchecked.
            promote_if_unset(store, *_split_label(snapshot.current))
            return self._load_baseline(validated_run)
        snapshot = write_baseline(self._runs, snapshot)
        self._emit_event(
            "baseline_selected",
            current=snapshot.current,
            start=snapshot.start,
            rows=validated_run.train_scan.rows,
        )
        return snapshot

    def _refresh_baseline(self, baseline: Baseline, sha256: str) -> Baseline:
        if baseline.train_sha256 == sha256 or self._find_committed(baseline) is not None:
            return baseline
        # A checkpoint counts the rows that it has trained on, and these are different ones.
        self._emit_event("data_changed", why="data.train has changed: training starts over")
        for step in self._runs.list_checkpoint_steps():
            for key in self._runs.store.list(self._runs.checkpoint_key(step, "")):
                self._runs.store.delete(key)
        for part in (MASKS, LOW_RANK_INIT):
            self._runs.store.delete(self._runs.key(part))
        updated = baseline.model_copy(update={"train_sha256": sha256})
        return write_baseline(self._runs, updated, overwrite=True)

    def _find_committed(self, baseline: Baseline) -> Manifest | None:
        """Return the adapter that this run has committed, or None."""
        store, name, run_id = self._runs.store, self._retrain_spec.name, self._runs.run_id
        later = [v for v in list_versions(store, name) if v > baseline.newest_version]
        return find_newest(
            store, name, later, lambda manifest: manifest.run == run_id, trusts_all=True
        )

    def _train(
        self, validated_run: ValidatedRun, baseline: Baseline, request: TrainingRequest
    ) -> Manifest:
        self._check_start(validated_run, baseline, request.base_digest)
        self._runs.write_text(SPEC, dump_spec(validated_run.spec))
        self._runs.write_json(PLAN, validated_run.plan.to_json())
        self._run_on_workers(request)
        adapter = self._find_committed(baseline)
        assert adapter is not None
        return adapter

    def _check_start(
        self, validated_run: ValidatedRun, baseline: Baseline, base_digest: str
    ) -> None:
        """Raise InputError if training can't continue from the adapter it should start from."""
        if baseline.start is None:
            return
        store = self._runs.store
        start = resolve_adapter(store, baseline.start)
        # First the adapter's own files; its base, which is already hashed, is compared afterwards.
        faults = check_files(store, start) or find_start_faults(
            store, start, validated_run, base_digest
        )
        if faults:
            raise InputError(faults)

    def _apply_gate(
        self, baseline: Baseline, adapter: Manifest, request: TrainingRequest
    ) -> GateVerdict:
        """Evaluate the adapter, and the current one if they are compared, and apply the gate."""
        gate, store = self._retrain_spec.section.gate, self._runs.store
        baseline_label = baseline.current if gate.baseline == "current" else None
        previous_rows: HeldOutRows | str | None = None
        if baseline_label is not None and gate.tolerance is not None:
            previous_rows = find_previous_rows(store, resolve_adapter(store, baseline_label))
        labels = (adapter.label, *([baseline_label] if baseline_label else ()))
        previous_eval = previous_rows if isinstance(previous_rows, HeldOutRows) else None
        evaluations = self._evaluate(request.for_evaluation(labels, previous_eval))
        metrics_by_label = {label: self._select_metric(evaluations, label) for label in labels}
        verdict = apply_gate(
            gate,
            metrics_by_label[adapter.label],
            metrics_by_label[baseline_label] if baseline_label else None,
            missing_reason=previous_rows if isinstance(previous_rows, str) else "",
        )
        self._emit_event(
            "gate",
            adapter=adapter.label,
            baseline=baseline_label,
            metric=gate.metric,
            passed=verdict.passed,
            checks=verdict.to_json(),
        )
        return verdict

    def _evaluate(self, request: EvaluationRequest) -> dict[str, Any]:
        """Return each adapter's metrics on each set of rows, from an earlier attempt if it can."""
        if (recorded := self._read_evaluation(request)) is not None:
            return recorded
        self._run_on_workers(request)
        evaluations = self._read_evaluation(request)
        assert evaluations is not None
        return evaluations

    def _read_evaluation(self, request: EvaluationRequest) -> dict[str, Any] | None:
        try:
            record = self._runs.read_json(EVALUATION_FILE)
        except (NotInStore, ValueError):
            return None  # not measured yet, or incomplete
        return dict(record["metrics"]) if record.get("inputs") == request.inputs else None

    def _select_metric(self, evaluations: dict[str, Any], label: str) -> MetricByRows:
        name = self._retrain_spec.section.gate.evaluation_key
        return {rows: metrics.get(name) for rows, metrics in evaluations.get(label, {}).items()}

    def _promote_or_keep(self, baseline: Baseline, adapter: Manifest, verdict: GateVerdict) -> None:
        store = self._runs.store
        if not verdict.passed:
            return self._emit_event("not_promoted", adapter=adapter.label, why=verdict.reason)
        if not self._retrain_spec.section.promote:
            reason = "the gate passed, but retrain.promote is false"
            return self._emit_event("not_promoted", adapter=adapter.label, why=reason)
        if has_later_attempt(self._runs, self._attempt):
            reason = f"attempt {self._attempt} of {self._runs.run_id} was superseded by a later one"
            raise SupersededAttempt(f"{reason}, which decides about promotion. Nothing is lost.")
        if self._leaves_pointer:
            return self._emit_event(
                "promotion_requested",
                adapter=adapter.label,
                before=baseline.current,
                expected_move=baseline.pointer_move,
            )
        try:
            promote_after(store, adapter.name, adapter.version, expected_move=baseline.pointer_move)
        except PointerConflict as error:
            return self._emit_event("not_promoted", adapter=adapter.label, why=str(error))
        return self._emit_event("promoted", adapter=adapter.label, before=baseline.current)

    def _run_on_workers(self, request: TrainingRequest | EvaluationRequest) -> None:
        # Imported here because a run without new data must load neither Ray nor torch.
        from jobs.train.driver import describe_missing_resources, train_on_ray

        self._connect_ray()
        if not self._has_workers:
            self._has_workers = True
            if (missing := describe_missing_resources(request)) is not None:
                print(f"waiting for the cluster: {missing}", flush=True)
        # The evaluation after a training is no part of its start.
        start = self._phases.start if isinstance(request, TrainingRequest) else None
        train_on_ray(RunAttempt(request, self._attempt, start=start), self._runs)

    def _connect_ray(self) -> None:
        from jobs.train.driver import connect_ray

        if not self._connected:
            self._phases.end("check")
            connect_ray()
            self._phases.end("ray")
            self._connected = True

    def _emit_event(self, event: str, **facts: Any) -> None:
        self._runs.events.append({"event": event, "time": time.time(), **facts})


def _split_label(label: str) -> tuple[str, int]:
    name, version = split_name(label)
    assert version is not None
    return name, version
