"""One site in this process, for searches and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientSketches,
    ClientTask,
    CommitRecord,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.federation.sites.site import MarkTrainable, Site
from jobs.federation.sites.sites_interface import TaskResult
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.train.request import FederationRequest


class LocalSites:
    """The sites of a federation that has only one."""

    count = 1

    def __init__(
        self,
        request: FederationRequest,
        store: ObjectStore,
        device: torch.device,
        *,
        mark_trainable: MarkTrainable | None = None,
    ) -> None:
        self._site = Site(request, store, device, mark_trainable=mark_trainable)
        self._stage = -1

    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        self._stage = stage
        return self._site.open_stage(stage, payload)

    def get_shapes(self) -> dict[str, tuple[int, int]]:
        return self._site.get_shapes()

    def score_clients(self, clients: Sequence[int]) -> list[ClientScores | ClientFailure]:
        return [self._site.score_client(client) for client in clients]

    def sketch_clients(
        self, clients: Sequence[int], weights: bytes
    ) -> list[ClientSketches | ClientFailure]:
        return [self._site.sketch_client(client, self._stage, weights) for client in clients]

    def run_tasks(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        for task in tasks:
            yield self._site.run_task(task), task.payload.size if task.payload else 0

    def evaluate(self, weights: bytes) -> list[EvaluationSums]:
        return self._site.evaluate(self._stage, weights, part=0, parts=1)

    def collect_residuals(self) -> dict[int, bytes]:
        return self._site.get_residuals(self._stage)

    def collect_peaks(self) -> dict[str, dict[str, Any]]:
        return {"0": self._site.measure_peak()}

    def commit(self, weights: bytes, record: CommitRecord) -> Manifest:
        return self._site.commit(self._stage, weights, record)

    def close(self) -> None:
        """Do nothing: no process was started."""
