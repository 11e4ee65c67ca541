"""The loop of every kind of training: its stages in order, resumable at every seam.

    load -> evaluate -> sparse stage -> evaluate -> hand-off -> evaluate -> low-rank stage
         -> evaluate -> commit

Where the weights of the start can be had again, the first evaluation is made after the first step.
The loop decides when to evaluate, to checkpoint, to stop and to commit. A `StageTrainer` knows how:
`FineTuner` trains on this run's workers and counts steps, a federation's server trains on its
clients and counts rounds. Whatever lies before an arrow is in a checkpoint, and a run that died
resumes there.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from jobs.errors import TrainingFailed
from jobs.plan.plan import Plan, StagePlan
from jobs.spec.schema import RunSpec
from jobs.store.adapters.manifest import Manifest, detect_form
from jobs.store.runs.run_store import LEDGER, RunStore
from jobs.train.checkpoint import CheckpointSaver, TrainingState, load_newest_state
from jobs.train.comm.collectives import WorkerContext
from jobs.train.early_stopping import EarlyStopping
from jobs.train.engine.start_weights import StartWeights
from jobs.train.hooks import CheckpointReport, EvaluationReport, RunHooks, StoppedEarly
from jobs.train.monitor.ledger import Ledger
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.monitor.watchdog import Watchdog

NeedsSync = Callable[[int], bool]
"""Given the run's tokens after a step: whether all workers must agree on the weights then."""


@dataclass(frozen=True)
class StepOutcome:
    """The result of one step or round."""

    metrics: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    """Number and metrics of each step since the last exchange; empty between two exchanges."""
    failure: TrainingFailed | None = None
    """The reason to end the run, after the metrics are recorded."""
    preempted: bool = False
    """A worker will be stopped soon."""


class TrainingStage(Protocol):
    """An open stage, on one rank. Every method may be a collective."""

    def train_step(self, number: int, step: int, needs_sync: NeedsSync) -> StepOutcome | None:
        """Train step `number` of the stage (0 is the first), `step` of the run (1 is the first).

        Return None if the data ended before it.
        """

    def keep_start(self) -> StartWeights | None:
        """Return the weights that the stage starts with, or None if they can't be had again."""

    def evaluate(self) -> dict[str, float] | None:
        """Return the metrics of the held-out rows, or None if there are none."""

    def generate_samples(self, name: str) -> None:
        """Record answers to a few prompts, beside the evaluation of this name."""

    def gather_weights(self) -> Mapping[str, Tensor]:
        """Return the trained weights by name, float32, the same on every rank."""

    def gather_moments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the optimizer's state by name, and measure the workers' memory."""

    def close(self, weights: Mapping[str, Tensor]) -> None:
        """Take the stage's layers out of the model; `weights` are those it ends with."""


class StageTrainer(Protocol):
    """A kind of training, on one rank."""

    unit: str
    """step | round: what the loop counts."""
    spec: RunSpec
    runs: RunStore
    context: WorkerContext
    recorder: RunRecorder
    ledger: Ledger

    def load(self, state: TrainingState | None) -> Plan:
        """Load all that the stages need; `state` is the checkpoint to resume from.

        Return the plan, completed by what only the loaded model and data tell.
        """

    def describe_start(self, plan: Plan) -> dict[str, Any]:
        """Return the facts of the `started` event beside the plan: `steps`, in units."""

    def get_length(self, stage: StagePlan) -> int:
        """Return the stage's planned steps or rounds."""

    def open_stage(
        self, index: int, weights: Mapping[str, Tensor], resumed: TrainingState | None
    ) -> TrainingStage:
        """Open a stage on the weights of the one before, or on a checkpoint inside it."""

    def make_record(self) -> dict[str, Any]:
        """Return what a checkpoint's record must hold beside the loop's own entries."""

    def close_ledger(self, plan: Plan, step: int, lengths: Mapping[str, int]) -> None:
        """Write the ledger's last figures; `lengths` are the stages' units by name."""

    def publish(
        self, weights: Mapping[str, Tensor], evaluations: Mapping[str, Mapping[str, float]]
    ) -> Manifest:
        """Commit the adapter. Called on rank 0 only."""


class StageLoop:
    """Drives a run on one rank."""

    def __init__(
        self,
        trainer: StageTrainer,
        *,
        hooks: RunHooks | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        context = trainer.context
        self.trainer, self._spec, self._runs = trainer, trainer.spec, trainer.runs
        self._recorder, self._ledger = trainer.recorder, trainer.ledger
        self._hooks = hooks or RunHooks()
        self._watchdog = watchdog or Watchdog(context.rank, context.world_size, None)
        self._saver = CheckpointSaver(self._runs)
        self._stopping = EarlyStopping(self._spec.train.stop)
        self._is_preempted = self._is_newly_preempted = False
        self._start_weights: StartWeights | None = None
        """Kept until the first evaluation has been made, after the first step."""
        self._plan: Plan
        self.step = 0
        self.evaluations: dict[str, dict[str, float]] = {}

    def run(self) -> Manifest | None:
        """Train and commit. Return the manifest on rank 0, None elsewhere.

        Raise TrainingFailed, StoreError, BadAdapter, and StoppedEarly if a hook ends the run.
        """
        with self._saver:
            state = load_newest_state(self._runs)
            self._plan = self.trainer.load(state)
            if state is not None:
                self._resume(state)
            facts = self.trainer.describe_start(self._plan)
            self._recorder.emit_event("started", plan=self._plan.to_json(), **facts)
            weights: Mapping[str, Tensor] = state.weights if state else {}
            for index in range(state.stage if state else 0, len(self._plan.stages)):
                resumed = state if state and state.stage == index else None
                weights = self._run_stage(index, weights, resumed)
        self._watchdog.report_position("the commit")
        manifest = self._commit(weights)
        self._recorder.close()
        return manifest

    def _resume(self, state: TrainingState) -> None:
        self.step = state.step
        saved = state.record["evaluations"]
        self.evaluations = {name: dict(metrics) for name, metrics in saved.items()}
        self._ledger.restore(state.record["ledger"])
        self._stopping.restore(state.record["early_stopping"])
        stage = self._plan.stages[state.stage].name
        self._emit_event("resumed", step=state.step, stage=stage)

    def _run_stage(
        self, index: int, weights: Mapping[str, Tensor], resumed: TrainingState | None
    ) -> Mapping[str, Tensor]:
        """Run one stage, from the weights of the one before or from a checkpoint inside it."""
        name, start_time = self._plan.stages[index].name, time.monotonic()
        is_last = index == len(self._plan.stages) - 1
        self.trainer.context.collectives.enter_stage(name)
        stage = self.trainer.open_stage(index, weights, resumed)
        self._recorder.end_phase("compile")
        self._evaluate_before(stage, index)
        self._recorder.end_phase("evaluation")
        done = start = resumed.stage_step if resumed else 0
        if resumed is None:
            self._stopping.start_stage()
        length = self._get_length(index)
        self._emit_event("stage", stage=name, steps=length, done=done)
        while done < length and self._train_step(stage, index, done, length):
            done += 1
            length = self._get_length(index)
        self._revisit_start(stage)
        if length or is_last:
            self._evaluate(stage, "end" if is_last else name)
        if is_last:
            stage.generate_samples("end")
        weights = stage.gather_weights()
        if length != start:
            self._save(stage, index, length, weights, is_stage_end=True)
        stage.close(weights)
        self._ledger[f"{name}_seconds"] = time.monotonic() - start_time
        return weights

    def _evaluate_before(self, stage: TrainingStage, index: int) -> None:
        """Evaluate before a stage's first step: the base, or what the hand-off left of it."""
        if index == 0 and "before" not in self.evaluations:
            self._start_weights = stage.keep_start()
            if self._start_weights is None:
                self._evaluate_start(stage)
        if index > 0 and "handoff" not in self.evaluations:
            self._evaluate(stage, "handoff")

    def _evaluate_start(self, stage: TrainingStage) -> None:
        self._evaluate(stage, "before")
        stage.generate_samples("before")

    def _revisit_start(self, stage: TrainingStage) -> None:
        """Make the first evaluation, with the weights of the start, if it is still due."""
        if self._start_weights is not None:
            with self._start_weights.revisit():
                self._evaluate_start(stage)
            self._start_weights = None

    def _train_step(self, stage: TrainingStage, index: int, number: int, length: int) -> bool:
        """Train one step and what follows it. Return False if the data ended before it."""
        done = number + 1
        self.step += 1
        self._watchdog.report_position(f"{self.trainer.unit} {self.step}")
        outcome = stage.train_step(
            number, self.step, functools.partial(self._needs_sync, done, length)
        )
        if outcome is None:
            self.step -= 1
            return False
        self._recorder.end_phase("first_step")
        self._record_outcome(self._plan.stages[index].name, outcome)
        self._revisit_start(stage)
        self._finish_step(stage, index, done, length)
        return True

    def _record_outcome(self, stage_name: str, outcome: StepOutcome) -> None:
        if outcome.metrics or outcome.failure:
            self._await_checkpoint()
        for step, metrics in outcome.metrics:
            self._recorder.record_step(step, stage_name, metrics)
        if outcome.failure is not None:
            raise outcome.failure
        self._is_newly_preempted = outcome.preempted and not self._is_preempted
        self._is_preempted = self._is_preempted or outcome.preempted

    def _finish_step(self, stage: TrainingStage, index: int, done: int, length: int) -> None:
        """Evaluate, stop early and checkpoint, whatever is due after this step of the stage."""
        name, is_end, metrics = f"{self.trainer.unit} {self.step}", done == length, None
        if reason := self._stopping.check_budget(self._ledger["tokens"]):
            self._end_stages(index, len(self._plan.stages), done, reason)
        elif self._needs_evaluation() and not is_end:
            metrics = self._evaluate(stage, name, is_periodic=True)
            if reason := self._stopping.update(metrics):
                self._end_stages(index, index + 1, done, reason)
        is_end = is_end or reason is not None
        if self._is_newly_preempted and not is_end:
            self._recorder.emit_event("preempting", step=self.step)
        if (self._needs_checkpoint(done, length) or self._is_newly_preempted) and not is_end:
            self._save(stage, index, done, stage.gather_weights())
        self._is_newly_preempted = False
        if metrics is not None:
            self._report_evaluation(name, metrics, is_periodic=True)
        self._hooks.on_step_end(self.step)

    def _end_stages(self, start: int, end: int, done: int, reason: str) -> None:
        """End the first of these stages after `done` steps, and the others before their first."""
        lengths = {self._plan.stages[at].name: self._get_length(at) for at in range(start, end)}
        if self._stopping.end_stages(lengths, done):
            self._recorder.emit_event("early_stopped", step=self.step, why=reason)

    def _get_length(self, index: int) -> int:
        """Return a stage's steps or rounds, less those that early stopping saves."""
        stage = self._plan.stages[index]
        return self._stopping.limit_length(stage.name, self.trainer.get_length(stage))

    def _needs_sync(self, done: int, length: int, tokens: int) -> bool:
        """Return whether all workers must have the same weights after this step of the stage."""
        return (
            self._stopping.check_budget(tokens) is not None
            or self._needs_evaluation()
            or done == length
            or self._needs_checkpoint(done, length)
        )

    def _needs_evaluation(self) -> bool:
        interval = self._spec.train.eval_every
        return interval is not None and self.step % interval == 0

    def _needs_checkpoint(self, done: int, length: int) -> bool:
        interval = self._spec.train.checkpoint_every
        return interval is not None and self.step % interval == 0 and done != length

    def _save(
        self,
        stage: TrainingStage,
        index: int,
        done: int,
        weights: Mapping[str, Tensor],
        *,
        is_stage_end: bool = False,
    ) -> None:
        if not (self._spec.train.checkpoint_every or self._is_newly_preempted) or not done:
            return
        self._watchdog.report_position(f"the checkpoint of {self.trainer.unit} {self.step}")
        start_time, moments = time.monotonic(), stage.gather_moments()
        if self.trainer.context.rank == 0:
            record = {
                "evaluations": self.evaluations,
                "ledger": self._ledger.to_dict(),
                "early_stopping": self._stopping.to_dict(),
                **self.trainer.make_record(),
            }
            state = TrainingState(
                index, done, self.step, weights, moments, record=copy.deepcopy(record)
            )
            self._saver.save(state, functools.partial(self._record_checkpoint, state))
        if self._hooks.wait_for_checkpoints:
            self._saver.wait()
        self._ledger.add_seconds("checkpoint_seconds", time.monotonic() - start_time)
        tokens = self._ledger["tokens"]
        self._hooks.on_checkpoint(CheckpointReport(index, is_stage_end, self.step, tokens))

    def _await_checkpoint(self) -> None:
        """Wait for the checkpoint below this step, before the step is recorded.

        A checkpoint has one step's time to be written, so that a kill repeats no more steps than
        lie between two checkpoints.
        """
        start_time = time.monotonic()
        self._saver.wait()
        self._ledger.add_seconds("checkpoint_seconds", time.monotonic() - start_time)

    def _record_checkpoint(self, state: TrainingState, size: int) -> None:
        """Record a checkpoint that is written; called from the saver's thread."""
        self._recorder.write_json(LEDGER, state.record["ledger"])
        self._emit_event("checkpoint_saved", step=state.step, bytes=size)

    def _evaluate(
        self, stage: TrainingStage, name: str, *, is_periodic: bool = False
    ) -> dict[str, float] | None:
        """Evaluate and record; return None if there are no held-out rows, or a hook knew."""
        step = 0 if name == "before" else self.step
        if (known := self._hooks.load_evaluation(name)) is not None:
            self.evaluations[name] = known
            self._recorder.record_evaluation(name, step, known, 0.0)
            return None
        start_time = time.monotonic()
        self._watchdog.report_position(f"the evaluation after {self.trainer.unit} {step}")
        metrics = stage.evaluate()
        if metrics is None:
            return None
        seconds = time.monotonic() - start_time
        self._ledger.add_seconds("eval_seconds", seconds)
        self._recorder.record_evaluation(name, step, metrics, seconds)
        if not is_periodic:
            self.evaluations[name] = metrics
            self._report_evaluation(name, metrics, is_periodic=False)
        return metrics

    def _report_evaluation(
        self, name: str, metrics: Mapping[str, float], *, is_periodic: bool
    ) -> None:
        tokens = self._ledger["tokens"]
        report = EvaluationReport(name, self.step, tokens, metrics, is_periodic)
        if not self._hooks.on_evaluation(report):
            raise StoppedEarly

    def _commit(self, weights: Mapping[str, Tensor]) -> Manifest | None:
        lengths = {stage.name: self._get_length(at) for at, stage in enumerate(self._plan.stages)}
        self.trainer.close_ledger(self._plan, self.step, lengths)
        if self.trainer.context.rank:
            return None
        publish = functools.partial(self.trainer.publish, weights, self.evaluations)
        manifest = self._hooks.commit(publish)
        self._recorder.write_json(LEDGER, self._ledger)
        if manifest is not None:
            self._recorder.emit_event(
                "published",
                adapter=manifest.label,
                form=detect_form(manifest),
                bytes=manifest.size,
                url=self._runs.store.url(manifest.prefix),
                ledger=self._ledger,
            )
        return manifest

    def _emit_event(self, kind: str, **facts: Any) -> None:
        """Emit an event that says where in the run it happened, in the trainer's unit."""
        unit = {} if self.trainer.unit == "step" else {"unit": self.trainer.unit}
        self._recorder.emit_event(kind, **facts, **unit)
