"""Evaluate committed adapters on held-out rows, one after the other, on all workers.

The adapter is read from the store and attached to the base, as a server would do. The base is
replicated or sharded as the plan says, since one that was trained in shards fits no single worker.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.collectives import EVALUATION, WorkerContext
from jobs.train.data.worker_feeds import make_evaluation_feeds
from jobs.train.evaluation import evaluate
from jobs.train.model.base_model import load_model, read_saved_task
from jobs.train.model.settle_loss import settle_loss
from jobs.train.model.settle_packing import settle_packing
from jobs.train.model.tokenizer import load_tokenizer
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.monitor.watchdog import Watchdog
from jobs.train.request import EVALUATION_FILE, EvaluationRequest
from slora.formats.merge import attach_adapter
from slora.formats.peft import read_adapter
from slora.layers.install import TRAINABLE_SUFFIXES

AdapterMetrics = dict[str, dict[str, dict[str, float]]]
"""Metrics by adapter and set of rows; a set with labels that an adapter does not know is omitted.
"""


@dataclass(frozen=True)
class _LabelledModel:
    module: Any
    labels: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase


def evaluate_adapters(
    request: EvaluationRequest, runs: RunStore, context: WorkerContext, watchdog: Watchdog
) -> AdapterMetrics:
    """Evaluate the request's adapters and record the metrics. Return them on every rank. A
    collective.
    """
    recorder, metrics_by_adapter = RunRecorder(runs, writes=context.rank == 0), AdapterMetrics()
    for label in request.adapters:
        watchdog.report_position(f"the evaluation of {label}")
        metrics_by_adapter[label] = _evaluate_adapter(
            request, runs, resolve_adapter(runs.store, label, own_run=request.run_id), context
        )
        for row_set, metrics in metrics_by_adapter[label].items():
            recorder.emit_event("adapter_evaluated", adapter=label, rows=row_set, metrics=metrics)
    recorder.write_json(
        EVALUATION_FILE,
        {"inputs": request.inputs, "metrics": _replace_non_finite(metrics_by_adapter)},
    )
    recorder.close()
    return metrics_by_adapter


def _evaluate_adapter(
    request: EvaluationRequest, runs: RunStore, manifest: Manifest, context: WorkerContext
) -> dict[str, dict[str, float]]:
    spec, metrics = request.spec, dict[str, dict[str, float]]()
    with _load_adapter_model(request, runs, manifest, context) as model:
        packing = settle_packing(spec, request.plan.packing, model.module, context)
        choice = settle_loss(spec, model.module, context)
        request = request.with_packing(packing)
        shard = {"rank": context.rank, "world_size": context.world_size}
        for row_set, feed in make_evaluation_feeds(
            request, model.tokenizer, model.labels, **shard
        ).items():
            with context.collectives.attribute_to(EVALUATION):
                metrics[row_set] = evaluate(
                    model.module,
                    feed,
                    device=context.device,
                    choice=choice,
                    collectives=context.collectives,
                )
    return metrics


@contextmanager
def _load_adapter_model(
    request: EvaluationRequest, runs: RunStore, manifest: Manifest, context: WorkerContext
) -> Iterator[_LabelledModel]:
    """Load the adapter on its base, on this worker's device, or this worker's shard of it."""
    spec = request.spec
    with tempfile.TemporaryDirectory(prefix="slora-judged-") as scratch:
        folder = pull(runs.store, manifest, Path(scratch) / "adapter", own_run=request.run_id)
        task, dtype, attention = spec.model.task, spec.model.dtype, spec.model.attention
        load = partial(load_model, task=task, dtype=dtype, attention=attention)
        if manifest.kind == "full":
            labels = read_saved_task(folder).labels
            model = load(str(folder), labels=labels)
            tokenizer = load_tokenizer(str(request.base))
        else:
            adapter = read_adapter(folder)
            labels = adapter.labels
            model = load(str(request.base), labels=labels)
            attach_adapter(model, adapter)
            # An adapter that trains tokens has the tokenizer that knows them.
            tokenizer = load_tokenizer(str(folder if adapter.tokens else request.base))
    for name, parameter in model.named_parameters():
        # The adapter's own parameters are small, and stay complete: DeepSpeed does not see them.
        parameter.requires_grad_(manifest.kind != "full" and name.endswith(TRAINABLE_SUFFIXES))
    if request.plan.sharding == "replicate":
        yield _LabelledModel(model.to(context.device), labels, tokenizer)
        return
    # Imported here: DeepSpeed loads for a second, which only a sharded base needs.
    from jobs.train.model.base_shards import BaseShards

    with BaseShards(model, request.plan.sharding, context).gather_on_demand():
        yield _LabelledModel(model, labels, tokenizer)


def _replace_non_finite(
    metrics_by_adapter: AdapterMetrics,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the metrics with null for NaN and infinity, which JSON does not have."""
    return {
        label: {
            row_set: {
                name: value if math.isfinite(value) else None for name, value in metrics.items()
            }
            for row_set, metrics in row_sets.items()
        }
        for label, row_sets in metrics_by_adapter.items()
    }
