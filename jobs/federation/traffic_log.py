"""A federation's bill: bytes up and down, by client, round and cause.

A round is one line of `rounds.jsonl`; the sums by stage and cause are the ledger's, as any run's.
"""

from __future__ import annotations

from typing import Any

from jobs.federation.sites.messages import ClientFailure, ClientUpdate, StagePayload
from jobs.train.comm.collectives import HANDOFF, Collectives

DOWN, UP, MASKS = "down", "up", "masks"
"""The causes of a federation beside those of any run: weights and updates, and chosen masks."""


class TrafficLog:
    """What one round cost each client. The wire is the run's."""

    def __init__(self, collectives: Collectives, names: tuple[str, ...]) -> None:
        self._collectives, self._names = collectives, names
        self._lines: list[dict[str, Any]] = []

    def record_update(self, update: ClientUpdate, *, down_bytes: int, payload_bytes: int) -> None:
        """A client that told what it learnt."""
        self._count(DOWN, down_bytes)
        self._count(UP, len(update.update))
        line = {"up": len(update.update), "rows": update.rows, "tokens": update.tokens}
        metrics = {"loss": update.loss, "seconds": update.seconds}
        self._lines.append(
            {**self._make_line(update.client, down_bytes, payload_bytes), **line, **metrics}
        )

    def record_failure(
        self, failure: ClientFailure, *, down_bytes: int, payload_bytes: int
    ) -> None:
        """A client that was sent its weights, and left."""
        self._count(DOWN, down_bytes)
        self._lines.append(
            {
                **self._make_line(failure.client, down_bytes, payload_bytes),
                "up": 0,
                "left": failure.reason,
            }
        )

    def record_payload(self, payload: StagePayload) -> None:
        """What went with a client's first task of a stage."""
        for cause, part in ((MASKS, payload.masks), (HANDOFF, payload.inits)):
            if part:
                self._count(cause, len(part))

    def close_round(self) -> list[dict[str, Any]]:
        """The round's clients, by number."""
        lines, self._lines = self._lines, []
        return sorted(lines, key=lambda line: int(line["client"]))

    def _make_line(self, client: int, down_bytes: int, payload_bytes: int) -> dict[str, Any]:
        return {
            "client": client,
            "name": self._names[client],
            "down": down_bytes,
            "kit": payload_bytes,
        }

    def _count(self, cause: str, size: int) -> None:
        self._collectives.count_traffic(cause, size)
