"""Fine-tuning on one rank: how a stage of a run is installed, trained, evaluated and published.

`StageLoop` decides when. Everything that differs by rank is the slice of the data. Knows no Ray.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from jobs.errors import TrainingFailed
from jobs.plan.plan import Plan, StagePlan
from jobs.store.adapters.manifest import Manifest
from jobs.store.runs.run_store import PLAN, RunStore
from jobs.train.calibrate_run import make_run_calibration, make_run_sketches
from jobs.train.canary_rows import write_canary
from jobs.train.checkpoint import TrainingState
from jobs.train.comm.collectives import EVALUATION, INSTALL, SAMPLES, WorkerContext
from jobs.train.data.global_batches import Feed, Step
from jobs.train.data.run_encoder import make_encoder
from jobs.train.data.tokenization import Encoder
from jobs.train.data.worker_feeds import (
    make_eval_feed,
    make_sample_rows,
    make_train_feed,
)
from jobs.train.engine.chunked_loss import LossChoice
from jobs.train.engine.engine import Engine, ExchangeResult
from jobs.train.engine.factory import make_engine
from jobs.train.engine.learning_rate import compute_rates, describe_rates
from jobs.train.engine.start_weights import StartWeights, keep_start_weights
from jobs.train.engine.step import (
    has_diverged,
    locate_non_finite,
    make_divergence_error,
    take_step,
)
from jobs.train.evaluation import evaluate
from jobs.train.hooks import RunHooks
from jobs.train.loop import NeedsSync, StageLoop, StepOutcome
from jobs.train.measured_plan import complete_by_model
from jobs.train.method.publish import publish
from jobs.train.method.runner import MethodRunner, count_trainable, load_weights
from jobs.train.method.settle_kernels import settle_kernels
from jobs.train.method.stage_inputs import StageInputs
from jobs.train.model.load_base import BaseLoader, LoadedBase, load_base
from jobs.train.monitor.ledger import Ledger
from jobs.train.monitor.phases import PhaseStart
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.monitor.watchdog import Watchdog
from jobs.train.request import TrainingRequest
from jobs.train.samples import SamplePrompt, describe_samples, generate_answers, pick_prompts


def make_fine_tuning(
    request: TrainingRequest,
    runs: RunStore,
    context: WorkerContext,
    *,
    attempt: int = 0,
    hooks: RunHooks | None = None,
    watchdog: Watchdog | None = None,
    preemption_requested: Callable[[], bool] = lambda: False,
    start: PhaseStart | None = None,
) -> StageLoop:
    """Return the loop of a fine-tuning on this rank, ready to run; `start`: its phases so far."""
    hooks = hooks or RunHooks()
    trainer = FineTuner(
        request,
        runs,
        context,
        attempt=attempt,
        hooks=hooks,
        preemption_requested=preemption_requested,
        start=start,
    )
    return StageLoop(trainer, hooks=hooks, watchdog=watchdog)


class FineTuner:
    """Trains, evaluates and publishes one run's model; a `StageTrainer`."""

    unit = "step"

    def __init__(
        self,
        request: TrainingRequest,
        runs: RunStore,
        context: WorkerContext,
        *,
        attempt: int = 0,
        hooks: RunHooks | None = None,
        preemption_requested: Callable[[], bool] = lambda: False,
        start: PhaseStart | None = None,
        load: BaseLoader = load_base,
    ) -> None:
        self.spec, self.runs, self.context = request.spec, runs, context
        self._load_base = load
        self.recorder = RunRecorder(runs, writes=context.rank == 0, start=start)
        self.ledger = Ledger(context)
        self._request, self._attempt = request, attempt
        self._hooks, self._preemption_requested = hooks or RunHooks(), preemption_requested
        self._base: LoadedBase
        self._plan: Plan
        self._inputs: StageInputs
        self._train_feed: Feed
        self._eval_feed: Feed | None
        self._encoder: Encoder
        self._prompts: list[SamplePrompt]
        self.method: MethodRunner
        self.loss_choice: LossChoice

    @property
    def model(self) -> Any:
        """Return the base with the layers of the open stage."""
        return self._base.model

    def load(self, state: TrainingState | None) -> Plan:
        """Load base and data, and return the plan of the model and the rows themselves.

        Raise InputError if the plan does not hold for them. A collective.
        """
        request, spec = self._request, self.spec
        self.recorder.emit_event(
            "loading", base=str(request.base), host=os.uname().nodename, pid=os.getpid()
        )
        self._base = base = self._load_base(request, self.runs.store, self.context)
        self.recorder.end_phase("base")
        self._request = request = request.with_packing(base.packing)
        self.recorder.emit_event("packing_settled", **dataclasses.asdict(base.packing))
        self.loss_choice = base.loss
        self.recorder.emit_event("loss_settled", **self.loss_choice.describe())
        if base.warm_start is not None:
            self.recorder.emit_event("warm_started", parent=request.parent)
        self._inputs = StageInputs(
            spec,
            self.model,
            self._base.targets,
            self.runs,
            self.context,
            recorder=self.recorder,
            hooks=self._hooks,
            make_calibration=self._make_calibration,
            make_sketch_pass=partial(
                make_run_sketches, request, base, self.context, self.recorder, self.loss_choice
            ),
            resumed=state is not None,
            warm_start=self._base.warm_start,
        )
        self.method = MethodRunner(spec, self.model, self._inputs.shapes)
        self._load_data()
        self._plan = self._complete_plan()
        self.recorder.write_json(PLAN, self._plan.to_json())
        self.recorder.end_phase("data")
        return self._plan

    def describe_start(self, plan: Plan) -> dict[str, Any]:
        """Return the run's steps."""
        return {"steps": sum(stage.steps or 0 for stage in plan.stages)}

    def get_length(self, stage: StagePlan) -> int:
        """Return the stage's planned steps."""
        return stage.steps or 0

    def open_stage(
        self, index: int, weights: Mapping[str, Tensor], resumed: TrainingState | None
    ) -> FineTuningStage:
        """Install the stage's layers and make its engine. A collective."""
        stage = self._plan.stages[index]
        with self.context.collectives.attribute_to(INSTALL):
            self._install(stage, index, weights, resumed)
        engine = make_engine(self.spec, self._plan, self.model, self.context, self._base.shards)
        if resumed and resumed.stage_step:
            engine.restore_weights(resumed.weights)
            engine.restore_moments(resumed.moments, steps=resumed.stage_step)
        return FineTuningStage(self, stage, engine)

    def iterate_batches(self, start: int, end: int) -> Iterator[Step]:
        """Yield the run's global batches of these steps; with epochs, their end may come first."""
        return self._train_feed.iter_steps(start=start, steps=end, epochs=self.spec.train.epochs)

    def evaluate(self, engine: Engine) -> dict[str, float] | None:
        """Return the held-out rows' metrics, or None if there are no such rows. A collective."""
        if self._eval_feed is None:
            return None
        with self.context.collectives.attribute_to(EVALUATION):
            return evaluate(
                engine.module,
                self._eval_feed,
                device=self.context.device,
                choice=self.loss_choice,
                collectives=self.context.collectives,
            )

    def generate_samples(self, engine: Engine, name: str) -> None:
        """Record the model's answers to a few prompts. A collective."""
        if not self._prompts:
            return
        device, choice, feed = self.context.device, self.loss_choice, self._eval_feed
        with self.context.collectives.attribute_to(SAMPLES):
            answers = generate_answers(engine.module, self._prompts, self._encoder, device)
            if name == "end":
                write = partial(write_canary, self.recorder, device=device, choice=choice)
                write(self._request, engine.module, feed, self._prompts, answers)
        samples = describe_samples(self._prompts, answers)
        self.recorder.emit_event("samples", at=name, samples=samples)

    def is_preempted(self) -> bool:
        """Return whether this worker was told that it will be stopped soon."""
        return self._preemption_requested()

    def make_record(self) -> dict[str, Any]:
        """Return nothing: the loop's own entries are enough to resume from."""
        return {}

    def close_ledger(self, plan: Plan, step: int, lengths: Mapping[str, int]) -> None:
        """Write the ledger's last figures. A collective."""
        self.ledger.close(plan, step, lengths)

    def publish(
        self, weights: Mapping[str, Tensor], evaluations: Mapping[str, Mapping[str, float]]
    ) -> Manifest:
        """Commit the adapter. Raise BadAdapter, StoreError."""
        return publish(
            self.runs.store,
            self._request,
            self.model,
            self._base.tokenizer,
            weights,
            self.method,
            attempt=self._attempt,
            evaluations=evaluations,
            ledger=self.ledger,
            on_peft_loss=lambda loss: self.recorder.emit_event("stored_compact", reason=loss),
        )

    def _load_data(self) -> None:
        request, tokenizer, spec = self._request, self._base.tokenizer, self.spec
        rank, world_size = self.context.rank, self.context.world_size
        self._train_feed = make_train_feed(request, tokenizer, rank=rank, world_size=world_size)
        self._eval_feed = make_eval_feed(request, tokenizer, rank=rank, world_size=world_size)
        self._encoder = make_encoder(spec, request.base, tokenizer, request.labels)
        is_text = self._hooks.generates_samples and spec.target_kind in ("tokens", "completion")
        self._prompts = pick_prompts(make_sample_rows(request), self._encoder) if is_text else []

    def _complete_plan(self) -> Plan:
        """Complete the plan by the loaded model's shapes and, with epochs, by the rows' tokens."""
        sequences = None
        if self.spec.train.epochs is not None:
            count = self._train_feed.count()
            self.recorder.emit_event("dataset_counted", **dataclasses.asdict(count))
            sequences = count.sequences
        return complete_by_model(self._request, self.model, self.method.shapes, sequences=sequences)

    def _make_calibration(self, passes: int) -> Callable[[], int]:
        return make_run_calibration(
            self._request,
            self._base,
            self.context,
            self.recorder,
            choice=self.loss_choice,
            passes=passes,
        )

    def _install(
        self,
        stage: StagePlan,
        index: int,
        weights: Mapping[str, Tensor],
        resumed: TrainingState | None,
    ) -> None:
        inputs, trainable = self._inputs, stage.trainable
        if stage.name == "sparse":
            self.method.install_sparse(inputs.get_masks(), inputs.get_values())
            if kernels := settle_kernels(self.model, self.spec, self.runs):
                self.recorder.emit_event("kernels_chosen", kernels=kernels)
        if stage.name == "low-rank":
            inits, shares = inputs.make_inits(
                weights, is_first=index == 0, resumed=resumed is not None
            )
            self.ledger |= shares.describe() if shares is not None else {}
            has_residuals = any(init.residual is not None for init in inits.values())
            self.method.install_low_rank(inits, inputs.get_masks() if has_residuals else None)
        if resumed:
            load_weights(self.model, resumed.weights)
            self.method.restore_gates(resumed.weights)
        if stage.name != "full":
            # Where layers compete for their entries, only the masks tell how many there are.
            trainable = count_trainable(self.model)
        self.ledger[f"{stage.name}_trainable"] = trainable + self._plan.head


class FineTuningStage:
    """An open stage of a fine-tuning; a `TrainingStage`."""

    def __init__(self, tuner: FineTuner, stage: StagePlan, engine: Engine) -> None:
        self._tuner, self._stage, self._engine = tuner, stage, engine
        self._length = stage.steps or 1
        self._batches: Iterator[Step] | None = None
        self._unrecorded: list[tuple[int, dict[str, Any]]] = []
        """Steps since the last exchange, which tells their losses."""

    @property
    def engine(self) -> Engine:
        """Return the engine, for other steps than those of the run."""
        return self._engine

    def train_step(self, number: int, step: int, needs_sync: NeedsSync) -> StepOutcome | None:
        """Take one optimizer step on this worker's slice of the batch. A collective."""
        tuner = self._tuner
        if self._batches is None:
            end = step - 1 + self._length - number
            self._batches = tuner.iterate_batches(step - 1, end)
        batch = next(self._batches, None)
        if batch is None:
            return None
        train, ledger, start_time = tuner.spec.train, tuner.ledger, time.monotonic()
        rates = compute_rates(number, steps=self._length, stage=self._stage, train=train)
        is_pruned = tuner.method.should_prune(number + 1, self._length)
        exchange = take_step(
            self._engine,
            batch,
            rates=rates,
            device=tuner.context.device,
            choice=tuner.loss_choice,
            preempted=tuner.is_preempted(),
            sync=is_pruned or needs_sync(ledger["tokens"] + batch.tokens),
        )
        seconds = time.monotonic() - start_time
        ledger["tokens"] += batch.tokens
        ledger["seconds"] += seconds
        metrics = {
            **describe_rates(self._stage, rates),
            "grad_norm": self._engine.get_grad_norm(),
            "tokens": ledger["tokens"],
            "tokens_per_second": batch.tokens / seconds,
            "seconds": ledger["seconds"],
        }
        self._unrecorded.append((step, metrics))
        outcome = StepOutcome() if exchange is None else self._make_outcome(batch, exchange)
        if outcome.failure is None:
            tuner.method.prune(self._engine, number + 1, self._length)
        return outcome

    def keep_start(self) -> StartWeights | None:
        """Return the weights that the stage starts with, or None if they can't be had again."""
        return keep_start_weights(self._tuner.spec, self._engine)

    def evaluate(self) -> dict[str, float] | None:
        """Return the held-out rows' metrics, or None if there are no such rows. A collective."""
        return self._tuner.evaluate(self._engine)

    def generate_samples(self, name: str) -> None:
        """Record the model's answers to a few prompts. A collective."""
        self._tuner.generate_samples(self._engine, name)

    def gather_weights(self) -> Mapping[str, Tensor]:
        """Return the trained weights as the model computes with them. A collective."""
        return self._tuner.method.compute_effective_weights(self._engine.gather_weights())

    def gather_moments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the optimizer's moments, and measure the workers' memory. A collective."""
        moments = self._engine.gather_moments()
        self._tuner.ledger.measure_memory()
        return moments

    def close(self, weights: Mapping[str, Tensor]) -> None:
        """Take the stage's layers out of the model. A collective."""
        self._engine.close()
        with self._tuner.context.collectives.attribute_to(INSTALL):
            self._tuner.method.uninstall(weights)

    def _make_outcome(self, batch: Step, exchange: ExchangeResult) -> StepOutcome:
        """Give the steps since the last exchange their losses, which are known now."""
        unrecorded, self._unrecorded = self._unrecorded, []
        if exchange.average_error is not None:
            unrecorded[-1][1]["average_error"] = exchange.average_error
        recorded = list[tuple[int, Mapping[str, Any]]]()
        for (step, metrics), loss in zip(unrecorded, exchange.losses, strict=True):
            if has_diverged(loss, metrics["grad_norm"]):
                failure = self._explain_divergence(batch, step, loss, metrics["grad_norm"])
                return StepOutcome(tuple(recorded), failure=failure)
            recorded.append((step, {"loss": loss, **metrics}))
        return StepOutcome(tuple(recorded), preempted=exchange.preemption_notices > 0)

    def _explain_divergence(
        self, batch: Step, step: int, loss: float, grad_norm: float
    ) -> TrainingFailed:
        tuner = self._tuner
        location = locate_non_finite(self._engine, batch, tuner.context.device, tuner.loss_choice)
        return make_divergence_error(
            loss, grad_norm, step=step, stage=self._stage, location=location
        )
