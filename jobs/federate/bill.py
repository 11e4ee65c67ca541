"""A federation's bill: bytes up and down, by client, round and cause.

A round is one line of `rounds.jsonl`; the sums by stage and cause are the ledger's, as any run's.
"""

from __future__ import annotations

from typing import Any

from jobs.federate.messages import Answer, Kit, Left
from jobs.team import HANDOFF, Wire

DOWN, UP, MASKS = "down", "up", "masks"
"""The causes of a federation beside those of any run: weights and updates, and chosen masks."""


class Bill:
    """What one round cost each client. The wire is the run's."""

    def __init__(self, wire: Wire, names: tuple[str, ...]) -> None:
        self._wire, self._names = wire, names
        self._lines: list[dict[str, Any]] = []

    def answered(self, found: Answer, *, down: int, kit: int) -> None:
        """A client that told what it learnt."""
        self._sent(DOWN, down)
        self._sent(UP, len(found.update))
        line = {"up": len(found.update), "rows": found.rows, "tokens": found.tokens}
        measured = {"loss": found.loss, "seconds": found.seconds}
        self._lines.append({**self._of(found.client, down, kit), **line, **measured})

    def left(self, found: Left, *, down: int, kit: int) -> None:
        """A client that was sent its weights, and left."""
        self._sent(DOWN, down)
        self._lines.append({**self._of(found.client, down, kit), "up": 0, "left": found.why})

    def kit(self, kit: Kit) -> None:
        """What went with a client's first task of a stage."""
        for cause, part in ((MASKS, kit.masks), (HANDOFF, kit.starts)):
            if part:
                self._sent(cause, len(part))

    def close_round(self) -> list[dict[str, Any]]:
        """The round's clients, by number."""
        lines, self._lines = self._lines, []
        return sorted(lines, key=lambda line: int(line["client"]))

    def _of(self, client: int, down: int, kit: int) -> dict[str, Any]:
        return {"client": client, "name": self._names[client], "down": down, "kit": kit}

    def _sent(self, cause: str, size: int) -> None:
        self._wire.count(cause, size)
