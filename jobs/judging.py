"""Committed adapters measured on held-out rows, one after the other, by as many workers as train.

What is measured is what lies in the store, put onto the base as whoever serves it would: the base
whole or in parts as the plan holds it, since one that was trained in parts fits no single worker.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.base_model import load_model, load_tokenizer, saved_task
from jobs.base_shards import BaseShards
from jobs.feeds import judging_feeds
from jobs.measure import evaluate
from jobs.pulse import Pulse
from jobs.record import Record
from jobs.request import Request
from jobs.store.adapters import pull, resolve
from jobs.store.manifest import Manifest
from jobs.store.runs import RunStore
from jobs.team import EVALUATION, Team
from slora.adapt import TRAINED
from slora.folder import read
from slora.merge import attach

Figures = dict[str, dict[str, dict[str, float]]]
"""Metrics by adapter and set of rows; an adapter that can't be asked about a set lacks it."""


@dataclass(frozen=True)
class _Model:
    module: Any
    labels: tuple[str, ...]


def judge(request: Request, runs: RunStore, team: Team, pulse: Pulse) -> Figures:
    """Each of the request's adapters on each set of rows, the same on every rank. A collective."""
    record, found = Record(runs, writes=team.rank == 0), Figures()
    for label in request.judged:
        pulse.at(f"the evaluation of {label}")
        found[label] = _measured(request, runs, resolve(runs.store, label), team)
        for rows, metrics in found[label].items():
            record.event("judged", adapter=label, rows=rows, metrics=metrics)
    record.close()
    return found


def _measured(
    request: Request, runs: RunStore, manifest: Manifest, team: Team
) -> dict[str, dict[str, float]]:
    spec, found = request.spec, dict[str, dict[str, float]]()
    tokenizer = load_tokenizer(str(request.base))
    with _loaded(request, runs, manifest, team) as model:
        place = {"rank": team.rank, "world_size": team.world_size}
        for rows, feed in judging_feeds(request, tokenizer, model.labels, **place).items():
            with team.wire.because(EVALUATION):
                found[rows] = evaluate(
                    model.module, feed, task=spec.model.task, device=team.device, wire=team.wire
                )
    return found


@contextmanager
def _loaded(request: Request, runs: RunStore, manifest: Manifest, team: Team) -> Iterator[_Model]:
    """The adapter on its base, on this worker's device, whole or this worker's part of it."""
    spec = request.spec
    with tempfile.TemporaryDirectory(prefix="slora-judged-") as made:
        folder = pull(runs.store, manifest, Path(made) / "adapter")
        task, dtype = spec.model.task, spec.model.dtype
        if manifest.kind == "full":
            labels = saved_task(folder)[1]
            model = load_model(str(folder), task=task, dtype=dtype, labels=labels)
        else:
            adapter = read(folder)
            labels = adapter.labels
            model = load_model(str(request.base), task=task, dtype=dtype, labels=labels)
            attach(model, adapter)
    for name, parameter in model.named_parameters():
        # What stays whole is what DeepSpeed does not see: the adapter's own, which is small.
        parameter.requires_grad_(manifest.kind != "full" and name.endswith(TRAINED))
    if request.plan.sharding == "replicate":
        yield _Model(model.to(team.device), labels)
        return
    with BaseShards(model, request.plan.sharding, team).gathering():
        yield _Model(model, labels)
