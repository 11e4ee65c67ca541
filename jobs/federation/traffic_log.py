"""Record the bytes that a federation sends and receives, by client, round and cause.

A round is one line of `rounds.jsonl`; the ledger has the sums by stage and cause, as in any run.
"""

from __future__ import annotations

from typing import Any

from jobs.federation.sites.messages import ClientFailure, ClientUpdate, StagePayload
from jobs.train.comm.collectives import HANDOFF, Collectives

DOWN, UP, MASKS = "down", "up", "masks"
"""The causes that only a federation has: weights, updates, and masks chosen by scores."""


class TrafficLog:
    """The traffic of the current round, by client. All of it is counted in the run's ledger too."""

    def __init__(self, collectives: Collectives, names: tuple[str, ...]) -> None:
        self._collectives, self._names = collectives, names
        self._lines: list[dict[str, Any]] = []

    def record_update(self, update: ClientUpdate, *, down_bytes: int, payload_bytes: int) -> None:
        """Record a client that has sent its update."""
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
        """Record a client that was sent the weights and has not returned a valid update."""
        self._count(DOWN, down_bytes)
        self._lines.append(
            {
                **self._make_line(failure.client, down_bytes, payload_bytes),
                "up": 0,
                "failure": failure.reason,
            }
        )

    def record_payload(self, payload: StagePayload) -> None:
        """Count the payload of a client's first task in a stage."""
        for cause, part in ((MASKS, payload.masks), (HANDOFF, payload.inits)):
            if part:
                self._count(cause, len(part))

    def close_round(self) -> list[dict[str, Any]]:
        """Return the lines of the round's clients, by number, and start the next round."""
        lines, self._lines = self._lines, []
        return sorted(lines, key=lambda line: int(line["client"]))

    def _make_line(self, client: int, down_bytes: int, payload_bytes: int) -> dict[str, Any]:
        return {
            "client": client,
            "name": self._names[client],
            "down": down_bytes,
            "payload": payload_bytes,
        }

    def _count(self, cause: str, size: int) -> None:
        self._collectives.count_traffic(cause, size)
