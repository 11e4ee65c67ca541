"""The trainers of one process: the product's loop, and a plain loop around PEFT's own layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from jobs.inspect.datasets.scan import scan_dataset
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from jobs.store.adapters.manifest import Manifest
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.collectives import WorkerContext
from jobs.train.data.worker_feeds import make_eval_feed
from jobs.train.evaluation import evaluate
from jobs.train.fine_tuning import FineTuner
from jobs.train.hooks import EvaluationReport, RunHooks
from jobs.train.loop import StageLoop
from jobs.train.model.load_base import LoadedBase
from jobs.train.model.tokenizer import load_tokenizer
from jobs.train.request import TrainingRequest
from tests.benchmarks.quality.peft_training import PeftTraining
from tests.benchmarks.quality.setting import Setting
from tests.benchmarks.quality.shared_base import SharedBases
from tests.benchmarks.quality.training import extract_curve, summarize_stages

RUN = "quality"
Metrics = dict[str, float]


class Bench:
    """What a process keeps between trainings."""

    def __init__(self, device: torch.device) -> None:
        self._context = WorkerContext(0, 1, device)
        self._bases = SharedBases()
        self._untrained: dict[tuple[Any, ...], Metrics] = {}
        """The metrics of bases on the validation rows, before any training."""

    def train(self, setting: Setting, splits: Mapping[str, str], store: str) -> dict[str, Any]:
        """Return the figures of one training. Raise InputError, TrainingFailed."""
        validated = validate_run(validate_spec(setting.make_spec(splits, store)))
        request = validated.make_request(RUN)
        runs = RunStore(open_store(validated.spec.store), RUN)
        if setting.variant.peft is not None:
            return self._train_by_peft(setting, request, runs, splits["test"])
        return self._train_by_product(setting, request, runs, splits["test"])

    def _train_by_product(
        self, setting: Setting, request: TrainingRequest, runs: RunStore, test: str
    ) -> dict[str, Any]:
        identity = (request.base_digest, setting.dtype, setting.seed, setting.corpus.name)
        hooks = BenchHooks(request, test, self._untrained.get(identity), self._context.device)
        trainer = FineTuner(request, runs, self._context, hooks=hooks, load=self._bases.load)
        hooks.trainer = trainer
        loop = StageLoop(trainer, hooks=hooks)
        loop.run()
        self._untrained.setdefault(identity, loop.evaluations["before"])
        metrics, _ = runs.metrics.tail(0)
        ledger, suffix = trainer.ledger, "_trainable"
        trained = {
            key.removesuffix(suffix): int(ledger[key]) for key in ledger if key.endswith(suffix)
        }
        return _make_figures(
            setting, metrics, trained, loop.evaluations, hooks.test_metrics,
            parameters=ledger["model_parameters"], tokens=ledger["tokens"],
            seconds=ledger["seconds"],
            handoff={key: ledger[key] for key in ledger if key.startswith("handoff")},
        )  # fmt: skip

    def _train_by_peft(
        self, setting: Setting, request: TrainingRequest, runs: RunStore, test: str
    ) -> dict[str, Any]:
        base = self._bases.load(request, runs.store, self._context)
        request = request.with_packing(base.packing)
        training = PeftTraining(setting, request, base, self._context.device)
        metrics, seconds = training.run()
        test_metrics = evaluate_file(
            test, request, base, training.model, device=self._context.device
        )
        tokens = max(line["tokens"] for line in metrics if "evaluation" not in line)
        return _make_figures(
            setting, metrics, {"peft": training.trained}, training.evaluations, test_metrics,
            parameters=training.parameters, tokens=tokens, seconds=seconds, handoff={},
        )  # fmt: skip


class BenchHooks(RunHooks):
    """One more evaluation at the end, on the test rows; none before it that is known; no adapter
    is published.
    """

    generates_samples = False  # They take longer than the training.

    def __init__(
        self, request: TrainingRequest, test: str, untrained: Metrics | None, device: torch.device
    ) -> None:
        self._request, self._test, self._device = request, test, device
        self._untrained = untrained
        self.trainer: FineTuner
        self.test_metrics: Metrics

    def load_evaluation(self, name: str) -> Metrics | None:
        return self._untrained if name == "before" else None

    def on_evaluation(self, report: EvaluationReport) -> bool:
        if report.name == "end":
            request, model = self._request, self.trainer.model
            self.test_metrics = evaluate_file(
                self._test, request, self.trainer, model, device=self._device
            )
        return True

    def commit(self, publish: Any) -> Manifest | None:
        return None


def evaluate_file(
    path: str,
    request: TrainingRequest,
    base: LoadedBase | FineTuner,
    model: Any,
    *,
    device: torch.device,
) -> Metrics:
    """Return the metrics of the model in training on the rows of a file."""
    spec = request.spec
    rows = scan_dataset(path, spec.data.format, spec.model.task, "test")
    feed = make_eval_feed(
        dataclasses.replace(request, eval_data=rows),
        load_tokenizer(str(request.base)),
        rank=0,
        world_size=1,
    )
    assert feed is not None
    choice = base.loss if isinstance(base, LoadedBase) else base.loss_choice
    return evaluate(model, feed, device=device, choice=choice)


def _make_figures(
    setting: Setting,
    metrics: list[dict[str, Any]],
    trained: Mapping[str, int],
    evaluations: Mapping[str, Metrics],
    test: Metrics,
    *,
    parameters: float,
    tokens: float,
    seconds: float,
    handoff: Mapping[str, Any],
) -> dict[str, Any]:
    metric = setting.corpus.metric
    stages = summarize_stages(metrics, trained)
    return {
        "validation": evaluations["end"][metric],
        "test": test[metric],
        "test_metrics": test,
        "evaluations": evaluations,
        "curve": extract_curve(metrics, metric),
        "stages": stages,
        "trained": max(stage["trained"] for stage in stages),
        "parameters": int(parameters),
        "bytes": sum(stage["steps"] * stage["bytes_a_step"] for stage in stages),
        "tokens": int(tokens),
        "seconds": round(seconds, 1),
        "handoff": handoff,
    }
