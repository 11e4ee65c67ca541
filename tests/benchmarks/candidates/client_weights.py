"""Federations whose mean weighs clients in another way than by their rows.

The product's server weighs by rows, so each update is scaled by the share that it should have over
the one that it gets: the mean is the wanted one, and the server stays as it is.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.federation.check import check_federation
from jobs.federation.server import make_federation
from jobs.federation.sites.local_sites import LocalSites
from jobs.federation.sites.messages import ClientTask, ClientUpdate, CommitRecord, StagePayload
from jobs.federation.sites.sites_interface import TaskResult
from jobs.inspect.datasets.scan import scan_dataset
from jobs.spec.kinds import require_kind
from jobs.spec.load import validate_spec
from jobs.spec.schema import FederatedSpec
from jobs.store.adapters.manifest import Manifest
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.evaluation_sums import compute_metrics
from tests.benchmarks.candidates.arms import HEAD_RATE, PART, Arm, Point
from tests.benchmarks.paper.data import prepared
from tests.benchmarks.paper.plan import HARDEST, Rival, setting

RUN = "candidates"
ROWS = Path(".cache/candidates/rows")


class WeighingSites(LocalSites):
    """One site whose updates are scaled for another weight in the server's mean."""

    def __init__(
        self, request: Any, *arguments: Any, weighting: str, validation: str, **options: Any
    ) -> None:
        super().__init__(request, *arguments, **options)
        self._weighting = weighting
        rows = scan_dataset(validation, PART.format, PART.task, "validation")
        judged = dataclasses.replace(request, eval_data=rows)
        self._make_judge = partial(LocalSites, judged, *arguments, **options)
        self.validation: dict[str, float] = {}

    def open_stage(self, stage: int, payload: StagePayload) -> Any:
        self._opened = stage, payload
        return super().open_stage(stage, payload)

    def run_tasks(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        results = list(super().run_tasks(tasks))
        updates = [reply for reply, _ in results if isinstance(reply, ClientUpdate)]
        scales = compute_scales(updates, self._weighting)
        for reply, size in results:
            if isinstance(reply, ClientUpdate):
                scaled = np.frombuffer(reply.update, "<f4") * np.float32(scales[reply.client])
                reply = dataclasses.replace(reply, update=scaled.astype("<f4").tobytes())
            yield reply, size

    def commit(self, weights: bytes, record: CommitRecord) -> Manifest:
        # A second site with the validation rows; like any client it gets the stage's payload.
        judge = self._make_judge()
        judge.open_stage(*self._opened)
        columns = zip(*(part.values for part in judge.evaluate(weights)), strict=True)
        self.validation = compute_metrics([sum(column) for column in columns], "class")
        return super().commit(weights, record)


def compute_scales(updates: Sequence[ClientUpdate], weighting: str) -> dict[int, float]:
    """Return each client's share of the mean over its share by rows: 1 for `rows`.

    `tokens`: those that it has trained on in the round.
    """
    weights = {
        update.client: {"rows": update.rows, "tokens": update.tokens, "uniform": 1}[weighting]
        for update in updates
    }
    total, rows = sum(weights.values()), sum(update.rows for update in updates)
    return {u.client: weights[u.client] / total / (u.rows / rows) for u in updates}


def train_federation(arm: Arm, point: Point, seed: int) -> dict[str, Any]:
    """Return the figures of one federation. Raise InputError, TrainingFailed."""
    data = prepared(PART, ROWS)
    rival = Rival("sparse", {"kind": "sparse"})
    training = setting(PART, HARDEST, rival, (None, point["adapter"], HEAD_RATE), seed)
    folder = tempfile.mkdtemp(prefix="slora-candidates-")
    try:
        plain = training.spec(data, f"file://{folder}", data["test"])
        validated = check_federation(require_kind(validate_spec(plain), FederatedSpec))
        assert validated.partition is not None
        objects = open_store(validated.federated_spec.store)
        runs = RunStore(objects, RUN)
        request = validated.extend_request(validated.validated_run.make_request(RUN), runs)
        sites = WeighingSites(
            request, objects, torch.device("cpu"), weighting=arm.options["weighting"],
            validation=data["validation"],
        )  # fmt: skip
        make_federation(request, runs, sites, validated.partition).run()
        metrics, _ = runs.metrics.tail(0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    last = [line for line in metrics if "evaluation" in line][-1]
    return {
        "validation": sites.validation["accuracy"], "validation_loss": sites.validation["loss"],
        "test": last["accuracy"], "test_loss": last["loss"],
        "rows_by_client": [len(rows) for rows in validated.partition.rows],
    }  # fmt: skip
