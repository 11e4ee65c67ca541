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

from jobs import stages
from jobs.adaptation import Adaptation, Scores, trained_count
from jobs.base import load_base
from jobs.base_model import trained_head
from jobs.base_shards import size_of
from jobs.calibration import calibration_run
from jobs.checkpoint import Saver, State, newest_state
from jobs.data.feed import Step
from jobs.engine import Engine, Exchanged
from jobs.engines import engine_for
from jobs.errors import InputError
from jobs.feeds import calibration_feed, eval_feed, train_feed
from jobs.ledger import Ledger
from jobs.measure import evaluate
from jobs.plan import Shape, StagePlan, make_plan, split_steps, steps_for
from jobs.publish import publish
from jobs.pulse import Pulse
from jobs.record import Record
from jobs.request import Request
from jobs.samples import answer, pick_prompts
from jobs.schedule import rate_at
from jobs.step import broken_at, diverged, not_finite, take_step
from jobs.stopping import Enough
from jobs.store.manifest import Manifest, form
from jobs.store.runs import RunStore
from jobs.team import CALIBRATION, EVALUATION, INSTALL, SAMPLES, Team
from slora.masks.scorer import Scorer


class Training:
    """The run on one rank. Everything that differs by rank is the slice of the data."""

    def __init__(
        self,
        request: Request,
        runs: RunStore,
        team: Team,
        *,
        attempt: int = 0,
        pulse: Pulse | None = None,
        notice: Callable[[], bool] = lambda: False,
    ) -> None:
        self.request, self.runs, self.attempt, self.team = request, runs, attempt, team
        self.rank, self.world_size, self.device = team.rank, team.world_size, team.device
        self.spec, self.plan = request.spec, request.plan
        self.record = Record(runs, writes=team.rank == 0)
        self.saver = Saver(runs)
        self.pulse = pulse or Pulse(team.rank, team.world_size, None)
        self.evaluations: dict[str, dict[str, float]] = {}
        self.ledger = Ledger(team)
        self.step = 0
        self.enough = Enough(request.spec.train.stop)
        self._notice, self._noticed, self._noticed_now = notice, False, False
        self._untold: list[dict[str, Any]] = []

    def run(self) -> Manifest | None:
        """Trains and commits. The manifest on rank 0, None elsewhere."""
        state = newest_state(self.runs)
        self._load(resumed=state is not None)
        if state is not None:
            self._resume(state)
        self._count_steps()
        weights: Mapping[str, Tensor] = state.weights if state else {}
        first = state.stage if state else 0
        for index in range(first, len(self.plan.stages)):
            resumed = state if state and state.stage == index else None
            weights = self._stage(index, weights, resumed)
        self.saver.close()
        self.pulse.at("the commit")
        manifest = self._publish(weights)
        self.record.close()
        return manifest

    def _load(self, *, resumed: bool) -> None:
        spec = self.spec
        self.record.event(
            "loading", base=str(self.request.base), host=os.uname().nodename, pid=os.getpid()
        )
        base = load_base(self.request, self.runs.store, self.team)
        self.model, self.tokenizer, self._shards = base.model, base.tokenizer, base.shards
        if base.warm is not None:
            self.record.event("going on", parent=self.request.parent)
        self.method = Adaptation(
            spec,
            self.model,
            base.targets,
            self.runs,
            self.team,
            record=self.record,
            calibrate=self._calibration,
            scored=self._scored,
            resumed=resumed,
            warm=base.warm,
        )
        self._check_plan()
        place = {"rank": self.rank, "world_size": self.world_size}
        self.train_feed = train_feed(self.request, self.tokenizer, **place)
        self.eval_feed = eval_feed(self.request, self.tokenizer, **place)
        source = self.eval_feed.source if self.eval_feed else self.train_feed.source
        self.prompts = (
            pick_prompts(source, self.tokenizer, max_length=spec.data.max_length)
            if spec.model.task == "causal-lm"
            else []
        )

    def _calibration(self, passes: int) -> Callable[[], int]:
        place = {"rank": self.rank, "world_size": self.world_size}
        feed = calibration_feed(self.request, self.tokenizer, **place)
        batches = self.spec.method.calibration_batches
        each = -(-batches * self.spec.train.batch_size // self.world_size)
        pace = self.record.pace("calibration sequences", passes * each)
        run = calibration_run(self.model, feed, batches=batches, device=self.device, seen=pace.seen)
        if self._shards is None:
            return run

        def gathered() -> int:
            assert self._shards is not None
            with self.team.wire.because(CALIBRATION), self._shards.gathering():
                return run()

        return gathered

    def _scored(self, scorer: Scorer, compute: Callable[[], Scores]) -> Scores:
        """Each layer's scores, computed here; who has them from elsewhere overrides it."""
        return compute()

    def _check_plan(self) -> None:
        """The plan was made from the model's files; here it is made of the model itself."""
        head = trained_head(self.model, self.spec.model.task)
        of_head = sum(p.numel() for module in head for p in module.parameters())
        parameters = sum(map(size_of, self.model.parameters())) - of_head
        shape = Shape(parameters, self.method.shapes, of_head)
        plan, faults = make_plan(self.spec, shape, prediction=self.plan.prediction)
        if plan is None:
            raise InputError(faults)
        self.plan = plan

    def _resume(self, state: State) -> None:
        self.step = state.step
        self.evaluations = {at: dict(found) for at, found in state.record["evaluations"].items()}
        self.ledger.restore(state.record["ledger"])
        self.enough.restore(state.record.get("enough", {}))
        self.record.event("resumed", step=state.step, stage=self.plan.stages[state.stage].name)

    def _count_steps(self) -> None:
        """With epochs, only the rows counted in tokens tell the steps: the plan is completed."""
        train = self.spec.train
        self.steps = train.steps or 0
        if train.epochs is not None:
            count = self.train_feed.count()
            self.steps = steps_for(count.sequences, train.epochs, train.batch_size)
            parts = zip(self.plan.stages, split_steps(self.spec, self.steps), strict=True)
            counted = tuple(dataclasses.replace(stage, steps=steps) for stage, steps in parts)
            self.plan = dataclasses.replace(self.plan, stages=counted)
            self.record.event("counted", **dataclasses.asdict(count))
        self.record.paper("plan.json", self.plan.to_json())
        self.record.event("started", steps=self.steps, plan=self.plan.to_json())
        self.plan = self.enough.shorten(self.plan)

    def _stage(
        self, index: int, weights: Mapping[str, Tensor], resumed: State | None
    ) -> Mapping[str, Tensor]:
        """One stage, from the weights of the one before or from a checkpoint inside it."""
        stage = self.plan.stages[index]
        seconds = time.monotonic()
        self.team.wire.stage = stage.name
        with self.team.wire.because(INSTALL):
            self._install(stage, index, weights, resumed)
        engine = engine_for(self.spec, self.plan, self.model, self.team, self._shards)
        if resumed and resumed.stage_step:
            engine.restore_weights(resumed.weights)
            engine.restore_moments(resumed.moments, steps=resumed.stage_step)
        self._before(index, engine)
        done = resumed.stage_step if resumed else 0
        if not resumed:
            self.enough.begin()
        self.record.event("stage", stage=stage.name, steps=stage.steps, done=done)
        for stage_step, step in enumerate(self._batches(stage, done), start=done):
            self._train_step(engine, stage, stage_step, step)
            self.method.prune(engine, stage_step + 1, stage.steps or 1)
            self._after_step(engine, stage, index, stage_step + 1)
            stage = self.plan.stages[index]
            if stage_step + 1 == stage.steps:
                break
        last = index == len(self.plan.stages) - 1
        self._measure(engine, "end" if last else stage.name)
        if last:
            self._sample(engine, "end")
        found = self.method.settled(engine.weights())
        if self.method.kept is not None:
            self.ledger["handoff_kept"] = self.method.kept
        if stage.steps != done:
            self._save(engine, index, stage.steps or 0, found)
        engine.close()
        with self.team.wire.because(INSTALL):
            self.method.uninstall(found)
        self.ledger[f"{stage.name}_seconds"] = time.monotonic() - seconds
        return found

    def _install(
        self, stage: StagePlan, index: int, weights: Mapping[str, Tensor], resumed: State | None
    ) -> None:
        if stage.name == "sparse":
            self.method.install_sparse()
        if stage.name == "low-rank":
            self.method.install_low_rank(weights, first=index == 0, done=resumed is not None)
        if resumed:
            stages.load_weights(self.model, resumed.weights)
            self.method.reopen(resumed.weights)
        if stage.name != "full":
            # Where layers compete for their entries, only the masks tell how many there are.
            counted = dataclasses.replace(stage, trainable=trained_count(self.model))
            parts = (*self.plan.stages[:index], counted, *self.plan.stages[index + 1 :])
            self.plan = dataclasses.replace(self.plan, stages=parts)

    def _before(self, index: int, engine: Engine) -> None:
        """Before a stage's first step: the base is measured, or what the hand-off left of it."""
        if index == 0 and "before" not in self.evaluations:
            self._measure(engine, "before")
            self._sample(engine, "before")
        if index > 0 and "handoff" not in self.evaluations:
            self._measure(engine, "handoff")

    def _batches(self, stage: StagePlan, done: int) -> Iterator[Step]:
        train = self.spec.train
        last = self.step + (stage.steps or 0) - done
        # With epochs the whole number of them bounds the stream; the last batch may be short.
        return self.train_feed.steps(start=self.step, steps=last, epochs=train.epochs)

    def _train_step(self, engine: Engine, stage: StagePlan, stage_step: int, step: Step) -> None:
        train, began = self.spec.train, time.monotonic()
        rate = rate_at(
            stage_step,
            steps=stage.steps or 1,
            peak=stage.learning_rate,
            warmup=train.warmup,
            schedule=train.schedule,
        )
        self.step += 1
        self.pulse.at(f"step {self.step}")
        told = take_step(
            engine,
            step,
            rate=rate,
            device=self.device,
            notice=self._notice(),
            sync=self._to_be_settled(stage, stage_step + 1, self.ledger["tokens"] + step.tokens),
        )
        took = time.monotonic() - began
        self.ledger["tokens"] += step.tokens
        self.ledger["seconds"] += took
        measured = {
            "step": self.step,
            "learning_rate": rate,
            "grad_norm": engine.grad_norm(),
            "tokens": self.ledger["tokens"],
            "tokens_per_second": step.tokens / took,
            "seconds": self.ledger["seconds"],
        }
        self._untold.append(measured)
        if told is not None:
            self._tell(engine, stage, step, told)

    def _tell(self, engine: Engine, stage: StagePlan, step: Step, told: Exchanged) -> None:
        """Records the steps since the last exchange, whose losses are known now."""
        self._await_checkpoint()
        if told.average_error is not None:
            self._untold[-1]["average_error"] = told.average_error
        for measured, loss in zip(self._untold, told.losses, strict=True):
            if diverged(loss, measured["grad_norm"]):
                place = broken_at(engine, step, self.device)
                raise not_finite(loss, measured, stage=stage, place=place)
            number = measured.pop("step")
            self.record.step(number, stage.name, {"loss": loss, **measured})
        self._untold.clear()
        self._noticed_now = told.notices > 0 and not self._noticed
        self._noticed = self._noticed or self._noticed_now

    def _after_step(self, engine: Engine, stage: StagePlan, index: int, done: int) -> None:
        train = self.spec.train
        at_end = done == stage.steps
        if why := self.enough.spent(self.ledger["tokens"]):
            self._enough(self.plan.stages[index:], done, why)
        elif train.eval_every and self.step % train.eval_every == 0 and not at_end:
            why = self.enough.judge(self._measure(engine, f"step {self.step}"))
            if why:
                self._enough([stage], done, why)
        at_end = at_end or why is not None
        if self._noticed_now and not at_end:
            self.record.event("noticed", step=self.step)
        if (self._to_be_saved(stage, done) or self._noticed_now) and not at_end:
            self._save(engine, index, done, self.method.settled(engine.weights()))
        self._noticed_now = False

    def _enough(self, stages: Sequence[StagePlan], done: int, why: str) -> None:
        """These stages are over, the first of them after `done` steps."""
        if self.enough.end(stages, done):
            self.plan = self.enough.shorten(self.plan)
            self.record.event("enough", step=self.step, why=why)

    def _to_be_settled(self, stage: StagePlan, done: int, tokens: int) -> bool:
        """Whether all workers must have the same weights after this step of the stage."""
        if self.enough.spent(tokens):
            return True
        measured = self.spec.train.eval_every and self.step % self.spec.train.eval_every == 0
        pruned = self.method.prunes_at(done, stage.steps or 1)
        return bool(measured) or pruned or done == stage.steps or self._to_be_saved(stage, done)

    def _to_be_saved(self, stage: StagePlan, done: int) -> bool:
        """Whether a checkpoint is due after this step of the stage."""
        every = self.spec.train.checkpoint_every
        return bool(every) and self.step % every == 0 and done != stage.steps  # type: ignore[operator]

    def _save(self, engine: Engine, index: int, done: int, weights: Mapping[str, Tensor]) -> None:
        if not (self.spec.train.checkpoint_every or self._noticed_now) or not done:
            return
        self.pulse.at(f"the checkpoint of step {self.step}")
        began, moments = time.monotonic(), engine.moments()
        self.ledger.measure_memory()
        if self.rank == 0:
            noted = {
                "evaluations": self.evaluations,
                "ledger": self.ledger.kept(),
                "enough": self.enough.kept(),
            }
            state = State(index, done, self.step, weights, moments, copy.deepcopy(noted))
            self.saver.save(state, functools.partial(self._saved, state))
        self.ledger.add("checkpoint_seconds", time.monotonic() - began)

    def _await_checkpoint(self) -> None:
        """A checkpoint has one step's time to be written: no step counts that stands on half a one.

        So a kill repeats no more steps than lie between two checkpoints.
        """
        began = time.monotonic()
        self.saver.wait()
        self.ledger.add("checkpoint_seconds", time.monotonic() - began)

    def _saved(self, state: State, size: int) -> None:
        """From the saver's thread, when a checkpoint is whole."""
        self.record.paper("ledger.json", state.record["ledger"])
        self.record.event("checkpoint", step=state.step, bytes=size)

    def _measure(self, engine: Engine, at: str) -> dict[str, float] | None:
        """Evaluates and records, under the name of where in the run it is; None without rows."""
        if self.eval_feed is None:
            return None
        began, wire = time.monotonic(), self.team.wire
        self.pulse.at(f"the evaluation after step {self.step}")
        with wire.because(EVALUATION):
            measured = evaluate(
                engine.module,
                self.eval_feed,
                task=self.spec.model.task,
                device=self.device,
                wire=wire,
            )
        took = time.monotonic() - began
        self.ledger.add("eval_seconds", took)
        if not at.startswith("step "):
            self.evaluations[at] = measured
        self.record.evaluation(at, self.step, measured, took)
        return measured

    def _sample(self, engine: Engine, at: str) -> None:
        if not self.prompts:
            return
        with self.team.wire.because(SAMPLES):
            answers = answer(engine.module, self.prompts, self.tokenizer, self.device)
        told = [
            {"prompt": p.shown, "wanted": p.wanted, "answer": said}
            for p, said in zip(self.prompts, answers, strict=True)
        ]
        self.record.event("samples", at=at, samples=told)

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
        self.record.paper("ledger.json", self.ledger)
        self.record.event(
            "published",
            adapter=manifest.label,
            form=form(manifest),
            bytes=manifest.size,
            place=self.runs.store.url(manifest.prefix),
            ledger=self.ledger,
        )
        return manifest
