"""A learning rate range test: a few steps at each of a few rates, from the same start, compared.

`slora plan --rates` runs it in one process with the engine of a run: what is trained, the rows, the
batch and the schedule are those of the spec, the schedule over the steps of the test. Rates are a
factor of two apart, around those of the plan. A stage is tested at the start that it has in a run:
the low-rank stage of slora follows the sparse one at its best rate. Nothing is published.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
import transformers
from torch import Tensor

from jobs.plan.plan import StagePlan
from jobs.plan.preflight import ValidatedRun
from jobs.plan.rate_rule import round_rate
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.collectives import make_worker_context
from jobs.train.comm.rendezvous import join_own_group
from jobs.train.data.global_batches import Step
from jobs.train.data.worker_feeds import make_eval_feed
from jobs.train.engine.bucket import MOMENTS
from jobs.train.engine.engine import Engine
from jobs.train.engine.learning_rate import compute_rates
from jobs.train.engine.step import has_diverged, take_step
from jobs.train.evaluation_sums import compute_metrics, compute_sums
from jobs.train.fine_tuning import FineTuner, FineTuningStage
from jobs.train.model.tokenizer import load_tokenizer

RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
TEST_STEPS = 20
EVAL_SEQUENCES = 64
"""Sequences that the rates are compared on: spread over the held-out rows, or, without such rows,
those that the next steps would train on.
"""

OnStep = Callable[[], None]
OnRate = Callable[[str, "TriedRate"], None]
"""Is called with the key of the spec and the rate that was tried for it."""


@dataclass(frozen=True)
class TriedRate:
    """A rate and the loss after it; None if the training diverged."""

    rate: float
    loss: float | None

    def describe_loss(self) -> str:
        """Return the loss as text."""
        return "diverged" if self.loss is None else f"{self.loss:.4f}"


@dataclass(frozen=True)
class RateTest:
    """The rates that were tried in a stage for one key of the spec."""

    stage: str
    key: str
    planned: float
    tried: tuple[TriedRate, ...]

    @property
    def best(self) -> float | None:
        """Return the rate with the lowest loss, or None if all have diverged."""
        finite = [entry for entry in self.tried if entry.loss is not None]
        return min(finite, key=lambda entry: entry.loss or 0.0).rate if finite else None

    def to_json(self) -> dict[str, Any]:
        """Return the test as plain values."""
        return {**asdict(self), "best": self.best}


def count_test_steps(validated: ValidatedRun) -> int:
    """Return how many steps the tests of a run take, for a progress bar."""
    stages = [stage for stage in validated.plan.stages if stage.steps != 0]
    heads = 1 if stages and stages[0].head_learning_rate is not None else 0
    return (len(stages) + heads) * len(RATE_FACTORS) * TEST_STEPS


def measure_rates(
    validated: ValidatedRun, on_step: OnStep, on_rate: OnRate = lambda key, tried: None
) -> list[RateTest]:
    """Return the tests of each stage, and of a head in the first one.

    `validated` has one worker, and its rows are tokenised. Raise InputError.
    """
    # The environment that says so is read once, and rows may have been tokenised before.
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="slora-rates-") as folder:
        spec = validated.spec.model_copy(update={"store": f"file://{folder}"})
        request = replace(validated, spec=spec).make_request("rates")
        join_own_group()
        device = torch.device("cuda" if spec.cluster.gpus_per_worker else "cpu")
        context = make_worker_context(0, 1, device, machine=os.uname().nodename)
        trainer = FineTuner(request, RunStore(open_store(spec.store), "rates"), context)
        plan = trainer.load(None)
        rows = _collect_rows(trainer, request)
        tests, weights = list[RateTest](), dict[str, Tensor]()
        for index, stage in enumerate(plan.stages):
            opened = trainer.open_stage(index, weights, None)
            if stage.steps == 0:
                # The hand-off needs its values all the same.
                weights = dict(opened.gather_weights())
            else:
                trial = _StageTrial(trainer, opened, stage, rows, on_step, on_rate)
                weights = trial.run(with_head=not tests)
                tests += trial.tests
            opened.close(weights)
        trainer.recorder.close()
    return tests


class _StageTrial:
    """The tests of one open stage."""

    def __init__(
        self,
        trainer: FineTuner,
        opened: FineTuningStage,
        stage: StagePlan,
        rows: Sequence[Step],
        on_step: OnStep,
        on_rate: OnRate,
    ) -> None:
        self._trainer, self._engine, self._stage = trainer, opened.engine, stage
        self._rows, self._on_step, self._on_rate = rows, on_step, on_rate
        self._start = self._engine.gather_weights()
        self._ends: dict[float, Mapping[str, Tensor]] = {}
        self.tests: list[RateTest] = []

    def run(self, *, with_head: bool) -> dict[str, Tensor]:
        """Test the stage's rate, then the head's at the best one. Return the best one's weights."""
        key = "sparse_learning_rate" if self._stage.name == "sparse" else "learning_rate"
        stage = self._stage
        best = self._test(key, stage.learning_rate, lambda rate: replace(stage, learning_rate=rate))
        end = self._ends.get(best, self._start)
        if with_head and stage.head_learning_rate is not None:
            at_best = replace(stage, learning_rate=best)
            self._test(
                "head_learning_rate",
                stage.head_learning_rate,
                lambda rate: replace(at_best, head_learning_rate=rate),
            )
        # The head stays in the model for the next stage.
        self._engine.write_weights(end)
        return dict(end)

    def _test(self, key: str, planned: float, set_rate: Callable[[float], StagePlan]) -> float:
        self._ends.clear()
        tried = list[TriedRate]()
        for rate in (round_rate(planned * factor) for factor in RATE_FACTORS):
            tried.append(self._try_rate(set_rate(rate), rate))
            self._on_rate(f"train.{key}", tried[-1])
        test = RateTest(self._stage.name, f"train.{key}", planned, tuple(tried))
        self.tests.append(test)
        return planned if test.best is None else test.best

    def _try_rate(self, stage: StagePlan, rate: float) -> TriedRate:
        """Train from the start at one rate, and return the loss on the rows."""
        trainer, engine = self._trainer, self._engine
        _restart(engine, self._start)
        train, done, diverged = trainer.spec.train, 0, False
        for number, batch in enumerate(trainer.iterate_batches(0, TEST_STEPS)):
            rates = compute_rates(number, steps=TEST_STEPS, stage=stage, train=train)
            exchange = take_step(
                engine,
                batch,
                rates=rates,
                device=trainer.context.device,
                choice=trainer.loss_choice,
                sync=True,
            )
            self._on_step()
            done += 1
            assert exchange is not None
            if diverged := has_diverged(exchange.losses[0], engine.get_grad_norm()):
                break
        for _ in range(TEST_STEPS - done):
            self._on_step()
        loss = math.inf if diverged else self._measure_loss()
        if not math.isfinite(loss):
            return TriedRate(rate, None)
        self._ends[rate] = engine.gather_weights()
        return TriedRate(rate, loss)

    def _measure_loss(self) -> float:
        trainer = self._trainer
        model, device = self._engine.module, trainer.context.device
        with torch.no_grad():
            sums = [
                compute_sums(model, batch, trainer.loss_choice, device=device)
                for step in self._rows
                for batch in step.micros
            ]
        totals = torch.stack(sums).sum(0)
        return compute_metrics(totals.tolist(), trainer.spec.target_kind)["loss"]


def _restart(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Give the engine the weights of the start, and an optimizer that has taken no step."""
    engine.write_weights(weights)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    engine.restore_moments(dict.fromkeys(MOMENTS, zeros), steps=0)


def _collect_rows(trainer: FineTuner, request: Any) -> list[Step]:
    """Return the batches that the rates are compared on."""
    tokenizer = load_tokenizer(str(request.base))
    feed = make_eval_feed(request, tokenizer, rank=0, world_size=1)
    train = trainer.spec.train
    if feed is None:
        count = max(1, EVAL_SEQUENCES // train.batch_size)
        return list(trainer.iterate_batches(TEST_STEPS, TEST_STEPS + count)) or list(
            islice(trainer.iterate_batches(0, count), count)
        )
    steps = list(feed.iter_epoch())
    count = max(1, EVAL_SEQUENCES // request.plan.micro_batch_size)
    return steps[:: max(1, len(steps) // count)][:count]


def iter_table_rows(tests: Sequence[RateTest]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of the table: the key, the rate, the loss, and what there is to say."""
    for test in tests:
        edges = (test.tried[0], test.tried[-1])
        for entry in test.tried:
            marks = ["best"] if entry.rate == test.best else []
            marks += ["edge"] if marks and entry in edges else []
            marks += ["planned"] if entry.rate == round_rate(test.planned) else []
            yield test.key, f"{entry.rate:g}", entry.describe_loss(), ", ".join(marks)
