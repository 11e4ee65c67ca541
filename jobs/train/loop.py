"""One worker's part of a run, from the base to the committed adapter. Knows no Ray.

    load -> evaluate -> sparse stage -> evaluate -> hand-off -> evaluate -> low-rank stage
         -> evaluate -> publish

Every arrow is a seam: what lies behind it is in a checkpoint, and a run that died goes on there.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from jobs.errors import InputError
from jobs.plan.plan import ModelShape, StagePlan, count_steps, make_plan, split_steps
from jobs.store.adapters.manifest import Manifest, detect_form
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import CheckpointSaver, TrainingState, load_newest_state
from jobs.train.comm.collectives import CALIBRATION, EVALUATION, INSTALL, SAMPLES, WorkerContext
from jobs.train.data.calibration import make_calibration_pass
from jobs.train.data.global_batches import Step
from jobs.train.data.worker_feeds import make_calibration_feed, make_eval_feed, make_train_feed
from jobs.train.early_stopping import EarlyStopping
from jobs.train.engine.engine import Engine, ExchangeResult
from jobs.train.engine.factory import make_engine
from jobs.train.engine.learning_rate import compute_rate
from jobs.train.engine.step import has_diverged, locate_non_finite, make_divergence_error, take_step
from jobs.train.evaluation import evaluate
from jobs.train.method import stages
from jobs.train.method.publish import publish
from jobs.train.method.runner import MethodRunner, Scores, count_trainable
from jobs.train.model.base_model import find_trained_head
from jobs.train.model.base_shards import count_elements
from jobs.train.model.load_base import load_base
from jobs.train.monitor.ledger import Ledger
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.monitor.watchdog import Watchdog
from jobs.train.request import Request
from jobs.train.samples import generate_answers, pick_prompts
from slora.masks.strategy import Scorer


class FineTuner:
    """The run on one rank. Everything that differs by rank is the slice of the data."""

    def __init__(
        self,
        request: Request,
        runs: RunStore,
        context: WorkerContext,
        *,
        attempt: int = 0,
        watchdog: Watchdog | None = None,
        preemption_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.request, self.runs, self.attempt, self.context = request, runs, attempt, context
        self.rank, self.world_size, self.device = context.rank, context.world_size, context.device
        self.spec, self.plan = request.spec, request.plan
        self.recorder = RunRecorder(runs, writes=context.rank == 0)
        self.saver = CheckpointSaver(runs)
        self.watchdog = watchdog or Watchdog(context.rank, context.world_size, None)
        self.evaluations: dict[str, dict[str, float]] = {}
        self.ledger = Ledger(context)
        self.step = 0
        self.early_stopping = EarlyStopping(request.spec.train.stop)
        self._preemption_requested, self._preempted, self._newly_preempted = (
            preemption_requested,
            False,
            False,
        )
        self._unrecorded_steps: list[dict[str, Any]] = []

    def run(self) -> Manifest | None:
        """Trains and commits. The manifest on rank 0, None elsewhere."""
        state = load_newest_state(self.runs)
        self._load(resumed=state is not None)
        if state is not None:
            self._resume(state)
        self._count_steps()
        weights: Mapping[str, Tensor] = state.weights if state else {}
        first = state.stage if state else 0
        for index in range(first, len(self.plan.stages)):
            resumed = state if state and state.stage == index else None
            weights = self._run_stage(index, weights, resumed)
        self.saver.close()
        self.watchdog.report_position("the commit")
        manifest = self._publish(weights)
        self.recorder.close()
        return manifest

    def _load(self, *, resumed: bool) -> None:
        spec = self.spec
        self.recorder.emit_event(
            "loading", base=str(self.request.base), host=os.uname().nodename, pid=os.getpid()
        )
        base = load_base(self.request, self.runs.store, self.context)
        self.model, self.tokenizer, self._shards = base.model, base.tokenizer, base.shards
        if base.warm_start is not None:
            self.recorder.emit_event("going on", parent=self.request.parent)
        self.method = MethodRunner(
            spec,
            self.model,
            base.targets,
            self.runs,
            self.context,
            recorder=self.recorder,
            make_calibration=self._make_calibration,
            provide_scores=self._scored,
            resumed=resumed,
            warm_start=base.warm_start,
        )
        self._check_plan()
        shard = {"rank": self.rank, "world_size": self.world_size}
        self.train_feed = make_train_feed(self.request, self.tokenizer, **shard)
        self.eval_feed = make_eval_feed(self.request, self.tokenizer, **shard)
        source = self.eval_feed.source if self.eval_feed else self.train_feed.source
        self.prompts = (
            pick_prompts(source, self.tokenizer, max_length=spec.data.max_length)
            if spec.model.task == "causal-lm"
            else []
        )

    def _make_calibration(self, passes: int) -> Callable[[], int]:
        shard = {"rank": self.rank, "world_size": self.world_size}
        feed = make_calibration_feed(self.request, self.tokenizer, **shard)
        batches = self.spec.method.calibration_batches
        per_pass = -(-batches * self.spec.train.batch_size // self.world_size)
        progress = self.recorder.track_progress("calibration sequences", passes * per_pass)
        calibrate = make_calibration_pass(
            self.model, feed, batches=batches, device=self.device, on_sequence=progress.advance
        )
        if self._shards is None:
            return calibrate

        def calibrate_gathered() -> int:
            assert self._shards is not None
            with (
                self.context.collectives.attribute_to(CALIBRATION),
                self._shards.gather_on_demand(),
            ):
                return calibrate()

        return calibrate_gathered

    def _scored(self, scorer: Scorer, compute: Callable[[], Scores]) -> Scores:
        """Each layer's scores, computed here; who has them from elsewhere overrides it."""
        return compute()

    def _check_plan(self) -> None:
        """The plan was made from the model's files; here it is made of the model itself."""
        head = find_trained_head(self.model, self.spec.model.task)
        head_size = sum(parameter.numel() for module in head for parameter in module.parameters())
        parameters = sum(map(count_elements, self.model.parameters())) - head_size
        shape = ModelShape(parameters, self.method.shapes, head_size)
        plan, faults = make_plan(self.spec, shape, estimate=self.plan.estimate)
        if plan is None:
            raise InputError(faults)
        self.plan = plan

    def _resume(self, state: TrainingState) -> None:
        self.step = state.step
        self.evaluations = {
            at: dict(metrics) for at, metrics in state.record["evaluations"].items()
        }
        self.ledger.restore(state.record["ledger"])
        self.early_stopping.restore(state.record.get("enough", {}))
        self.recorder.emit_event(
            "resumed", step=state.step, stage=self.plan.stages[state.stage].name
        )

    def _count_steps(self) -> None:
        """With epochs, only the rows counted in tokens tell the steps: the plan is completed."""
        train = self.spec.train
        self.steps = train.steps or 0
        if train.epochs is not None:
            count = self.train_feed.count()
            self.steps = count_steps(count.sequences, train.epochs, train.batch_size)
            parts = zip(self.plan.stages, split_steps(self.spec, self.steps), strict=True)
            counted = tuple(dataclasses.replace(stage, steps=steps) for stage, steps in parts)
            self.plan = dataclasses.replace(self.plan, stages=counted)
            self.recorder.emit_event("counted", **dataclasses.asdict(count))
        self.recorder.write_json("plan.json", self.plan.to_json())
        self.recorder.emit_event("started", steps=self.steps, plan=self.plan.to_json())
        self.plan = self.early_stopping.truncate_plan(self.plan)

    def _run_stage(
        self, index: int, weights: Mapping[str, Tensor], resumed: TrainingState | None
    ) -> Mapping[str, Tensor]:
        """One stage, from the weights of the one before or from a checkpoint inside it."""
        stage = self.plan.stages[index]
        start_time = time.monotonic()
        self.context.collectives.stage = stage.name
        with self.context.collectives.attribute_to(INSTALL):
            self._install(stage, index, weights, resumed)
        engine = make_engine(self.spec, self.plan, self.model, self.context, self._shards)
        if resumed and resumed.stage_step:
            engine.restore_weights(resumed.weights)
            engine.restore_moments(resumed.moments, steps=resumed.stage_step)
        self._evaluate_before(index, engine)
        done = resumed.stage_step if resumed else 0
        if not resumed:
            self.early_stopping.start_stage()
        self.recorder.emit_event("stage", stage=stage.name, steps=stage.steps, done=done)
        for stage_step, step in enumerate(self._iterate_batches(stage, done), start=done):
            self._train_step(engine, stage, stage_step, step)
            self.method.prune(engine, stage_step + 1, stage.steps or 1)
            self._after_step(engine, stage, index, stage_step + 1)
            stage = self.plan.stages[index]
            if stage_step + 1 == stage.steps:
                break
        last = index == len(self.plan.stages) - 1
        self._measure(engine, "end" if last else stage.name)
        if last:
            self._generate_samples(engine, "end")
        trained = self.method.compute_effective_weights(engine.gather_weights())
        if self.method.retained_energy is not None:
            self.ledger["handoff_kept"] = self.method.retained_energy
        if stage.steps != done:
            self._save(engine, index, stage.steps or 0, trained)
        engine.close()
        with self.context.collectives.attribute_to(INSTALL):
            self.method.uninstall(trained)
        self.ledger[f"{stage.name}_seconds"] = time.monotonic() - start_time
        return trained

    def _install(
        self,
        stage: StagePlan,
        index: int,
        weights: Mapping[str, Tensor],
        resumed: TrainingState | None,
    ) -> None:
        if stage.name == "sparse":
            self.method.install_sparse()
        if stage.name == "low-rank":
            self.method.install_low_rank(weights, is_first=index == 0, resumed=resumed is not None)
        if resumed:
            stages.load_weights(self.model, resumed.weights)
            self.method.restore_gates(resumed.weights)
        if stage.name != "full":
            # Where layers compete for their entries, only the masks tell how many there are.
            counted = dataclasses.replace(stage, trainable=count_trainable(self.model))
            parts = (*self.plan.stages[:index], counted, *self.plan.stages[index + 1 :])
            self.plan = dataclasses.replace(self.plan, stages=parts)

    def _evaluate_before(self, index: int, engine: Engine) -> None:
        """Before a stage's first step: the base is measured, or what the hand-off left of it."""
        if index == 0 and "before" not in self.evaluations:
            self._measure(engine, "before")
            self._generate_samples(engine, "before")
        if index > 0 and "handoff" not in self.evaluations:
            self._measure(engine, "handoff")

    def _iterate_batches(self, stage: StagePlan, done: int) -> Iterator[Step]:
        train = self.spec.train
        last = self.step + (stage.steps or 0) - done
        # With epochs the whole number of them bounds the stream; the last batch may be short.
        return self.train_feed.iter_steps(start=self.step, steps=last, epochs=train.epochs)

    def _train_step(self, engine: Engine, stage: StagePlan, stage_step: int, step: Step) -> None:
        train, start_time = self.spec.train, time.monotonic()
        rate = compute_rate(
            stage_step,
            steps=stage.steps or 1,
            peak=stage.learning_rate,
            warmup=train.warmup,
            schedule=train.schedule,
        )
        self.step += 1
        self.watchdog.report_position(f"step {self.step}")
        exchange = take_step(
            engine,
            step,
            rate=rate,
            device=self.device,
            preempted=self._preemption_requested(),
            sync=self._needs_sync(stage, stage_step + 1, self.ledger["tokens"] + step.tokens),
        )
        seconds = time.monotonic() - start_time
        self.ledger["tokens"] += step.tokens
        self.ledger["seconds"] += seconds
        metrics = {
            "step": self.step,
            "learning_rate": rate,
            "grad_norm": engine.get_grad_norm(),
            "tokens": self.ledger["tokens"],
            "tokens_per_second": step.tokens / seconds,
            "seconds": self.ledger["seconds"],
        }
        self._unrecorded_steps.append(metrics)
        if exchange is not None:
            self._record_exchange(engine, stage, step, exchange)

    def _record_exchange(
        self, engine: Engine, stage: StagePlan, step: Step, exchange: ExchangeResult
    ) -> None:
        """Records the steps since the last exchange, whose losses are known now."""
        self._await_checkpoint()
        if exchange.average_error is not None:
            self._unrecorded_steps[-1]["average_error"] = exchange.average_error
        for metrics, loss in zip(self._unrecorded_steps, exchange.losses, strict=True):
            if has_diverged(loss, metrics["grad_norm"]):
                location = locate_non_finite(engine, step, self.device)
                raise make_divergence_error(loss, metrics, stage=stage, location=location)
            number = metrics.pop("step")
            self.recorder.record_step(number, stage.name, {"loss": loss, **metrics})
        self._unrecorded_steps.clear()
        self._newly_preempted = exchange.preemption_notices > 0 and not self._preempted
        self._preempted = self._preempted or self._newly_preempted

    def _after_step(self, engine: Engine, stage: StagePlan, index: int, done: int) -> None:
        train = self.spec.train
        at_end = done == stage.steps
        if reason := self.early_stopping.check_budget(self.ledger["tokens"]):
            self._end_stages(self.plan.stages[index:], done, reason)
        elif train.eval_every and self.step % train.eval_every == 0 and not at_end:
            reason = self.early_stopping.update(self._measure(engine, f"step {self.step}"))
            if reason:
                self._end_stages([stage], done, reason)
        at_end = at_end or reason is not None
        if self._newly_preempted and not at_end:
            self.recorder.emit_event("noticed", step=self.step)
        if (self._needs_checkpoint(stage, done) or self._newly_preempted) and not at_end:
            self._save(
                engine, index, done, self.method.compute_effective_weights(engine.gather_weights())
            )
        self._newly_preempted = False

    def _end_stages(self, stages: Sequence[StagePlan], done: int, reason: str) -> None:
        """These stages are over, the first of them after `done` steps."""
        if self.early_stopping.end_stages(stages, done):
            self.plan = self.early_stopping.truncate_plan(self.plan)
            self.recorder.emit_event("enough", step=self.step, why=reason)

    def _needs_sync(self, stage: StagePlan, done: int, tokens: int) -> bool:
        """Whether all workers must have the same weights after this step of the stage."""
        if self.early_stopping.check_budget(tokens):
            return True
        is_evaluated = self.spec.train.eval_every and self.step % self.spec.train.eval_every == 0
        is_pruned = self.method.should_prune(done, stage.steps or 1)
        return (
            bool(is_evaluated)
            or is_pruned
            or done == stage.steps
            or self._needs_checkpoint(stage, done)
        )

    def _needs_checkpoint(self, stage: StagePlan, done: int) -> bool:
        """Whether a checkpoint is due after this step of the stage."""
        interval = self.spec.train.checkpoint_every
        return bool(interval) and self.step % interval == 0 and done != stage.steps  # type: ignore[operator]

    def _save(self, engine: Engine, index: int, done: int, weights: Mapping[str, Tensor]) -> None:
        if not (self.spec.train.checkpoint_every or self._newly_preempted) or not done:
            return
        self.watchdog.report_position(f"the checkpoint of step {self.step}")
        start_time, moments = time.monotonic(), engine.gather_moments()
        self.ledger.measure_memory()
        if self.rank == 0:
            record = {
                "evaluations": self.evaluations,
                "ledger": self.ledger.to_dict(),
                "enough": self.early_stopping.to_dict(),
            }
            state = TrainingState(index, done, self.step, weights, moments, copy.deepcopy(record))
            self.saver.save(state, functools.partial(self._record_checkpoint, state))
        self.ledger.add_seconds("checkpoint_seconds", time.monotonic() - start_time)

    def _await_checkpoint(self) -> None:
        """A checkpoint has one step's time to be written: no step counts that stands on half a one.

        So a kill repeats no more steps than lie between two checkpoints.
        """
        start_time = time.monotonic()
        self.saver.wait()
        self.ledger.add_seconds("checkpoint_seconds", time.monotonic() - start_time)

    def _record_checkpoint(self, state: TrainingState, size: int) -> None:
        """From the saver's thread, when a checkpoint is whole."""
        self.recorder.write_json("ledger.json", state.record["ledger"])
        self.recorder.emit_event("checkpoint", step=state.step, bytes=size)

    def _measure(self, engine: Engine, at: str) -> dict[str, float] | None:
        """Evaluates and records, under the name of where in the run it is; None without rows."""
        if self.eval_feed is None:
            return None
        start_time, collectives = time.monotonic(), self.context.collectives
        self.watchdog.report_position(f"the evaluation after step {self.step}")
        with collectives.attribute_to(EVALUATION):
            metrics = evaluate(
                engine.module,
                self.eval_feed,
                task=self.spec.model.task,
                device=self.device,
                collectives=collectives,
            )
        seconds = time.monotonic() - start_time
        self.ledger.add_seconds("eval_seconds", seconds)
        if not at.startswith("step "):
            self.evaluations[at] = metrics
        self.recorder.record_evaluation(at, self.step, metrics, seconds)
        return metrics

    def _generate_samples(self, engine: Engine, at: str) -> None:
        if not self.prompts:
            return
        with self.context.collectives.attribute_to(SAMPLES):
            answers = generate_answers(engine.module, self.prompts, self.tokenizer, self.device)
        samples = [
            {"prompt": prompt.display_text, "wanted": prompt.expected, "answer": text}
            for prompt, text in zip(self.prompts, answers, strict=True)
        ]
        self.recorder.emit_event("samples", at=at, samples=samples)

    def _publish(self, weights: Mapping[str, Tensor]) -> Manifest | None:
        self.ledger.close(self.plan, self.step)
        if self.rank:
            return None
        return self._commit(weights)

    def _commit(self, weights: Mapping[str, Tensor]) -> Manifest | None:
        """On rank 0: the adapter into the store."""
        manifest = publish(
            self.runs.store,
            self.request,
            self.model,
            self.tokenizer,
            weights,
            self.method,
            attempt=self.attempt,
            evaluations=self.evaluations,
            ledger=self.ledger,
        )
        self.recorder.write_json("ledger.json", self.ledger)
        self.recorder.emit_event(
            "published",
            adapter=manifest.label,
            form=detect_form(manifest),
            bytes=manifest.size,
            place=self.runs.store.url(manifest.prefix),
            ledger=self.ledger,
        )
        return manifest
