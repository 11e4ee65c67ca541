"""The interface that the server uses: tasks of a round go out, results come back, some never do.

`LocalSites` is one site in this process, for searches and tests; `RaySites` are actors on a
cluster. Both pass the same contract test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientSketches,
    ClientTask,
    ClientUpdate,
    CommitRecord,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.store.adapters.manifest import Manifest

TaskResult = tuple[ClientUpdate | ClientFailure, int]
"""The result of a task, and the bytes of the payload that was sent with it."""


class Sites(Protocol):
    """One worker or many, which train the clients in turn."""

    @property
    def count(self) -> int:
        """Return the number of workers."""

    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        """Install a stage on one of them; the others get the payload with their tasks."""

    def get_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the targets' rows and columns, in the model's order."""

    def score_clients(self, clients: Sequence[int]) -> list[ClientScores | ClientFailure]:
        """Compute the clients' scores for masks, before the first stage."""

    def sketch_clients(
        self, clients: Sequence[int], weights: bytes
    ) -> list[ClientSketches | ClientFailure]:
        """Compute the clients' sketches for the hand-off, with these weights of the open stage."""

    def run_tasks(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        """Yield the result of each task, in the order in which they finish."""

    def evaluate(self, weights: bytes) -> list[EvaluationSums]:
        """Evaluate the weights on every micro-batch of the held-out rows, in their order."""

    def collect_residuals(self) -> dict[int, bytes]:
        """Return what error feedback has kept in this stage, by client."""

    def collect_peaks(self) -> dict[str, dict[str, Any]]:
        """Return the peak memory of each worker, as the ledger has it."""

    def commit(self, weights: bytes, record: CommitRecord) -> Manifest:
        """Commit the adapter to the store."""

    def close(self) -> None:
        """Stop all workers."""
