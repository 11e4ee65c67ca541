"""The sites as the server sees them: a round's tasks go out, answers come back, some never do.

`Sites` is the door. `LocalSites` is one site in this process, for searches and tests; `RaySites`
(`ray_sites`) are actors on a cluster. Both are held to one contract test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientTask,
    ClientUpdate,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.federation.sites.site import MarkTrainable, Site
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.train.request import Request

TaskResult = tuple[ClientUpdate | ClientFailure, int]
"""What came of a task, and the bytes of a kit that went with it."""


class Sites(Protocol):
    """One worker or many, which play clients in turn."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        """A stage, installed on one of them; the others get what they lack with their tasks."""
        ...

    def get_shapes(self) -> dict[str, tuple[int, int]]:
        """The targets' rows and columns, in the model's order."""
        ...

    def score(self, clients: Sequence[int]) -> list[ClientScores | ClientFailure]:
        """Scores for masks, before the first stage."""
        ...

    def play(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        """Each task's answer, or why there is none, in the order in which they come."""
        ...

    def evaluate(self, weights: bytes) -> list[EvaluationSums]:
        """Every micro-batch of the held-out rows, in their order."""
        ...

    def collect_residuals(self) -> dict[int, bytes]:
        """What waits with clients in the stage, by client."""
        ...

    def collect_peaks(self) -> dict[str, dict[str, Any]]:
        """The most memory that each has held, as the ledger has it."""
        ...

    def commit(self, weights: bytes, **facts: Any) -> Manifest:
        """The adapter into the store."""
        ...

    def close(self) -> None:
        """No more is asked."""
        ...


class LocalSites:
    """One site, here."""

    count = 1

    def __init__(
        self,
        request: Request,
        store: ObjectStore,
        device: torch.device,
        *,
        mark_trainable: MarkTrainable | None = None,
    ) -> None:
        self._site = Site(request, store, device, mark_trainable=mark_trainable)
        self._stage = -1

    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        self._stage = stage
        return self._site.open(stage, payload)

    def get_shapes(self) -> dict[str, tuple[int, int]]:
        return self._site.shapes()

    def score(self, clients: Sequence[int]) -> list[ClientScores | ClientFailure]:
        return [self._site.score(client) for client in clients]

    def play(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        for task in tasks:
            yield self._site.play(task), task.payload.size if task.payload else 0

    def evaluate(self, weights: bytes) -> list[EvaluationSums]:
        return self._site.evaluate(self._stage, weights, 0, 1)

    def collect_residuals(self) -> dict[int, bytes]:
        return self._site.residuals(self._stage)

    def collect_peaks(self) -> dict[str, dict[str, Any]]:
        return {"0": self._site.peak()}

    def commit(self, weights: bytes, **facts: Any) -> Manifest:
        return self._site.commit(self._stage, weights, **facts)

    def close(self) -> None:
        """Nothing is left running."""
