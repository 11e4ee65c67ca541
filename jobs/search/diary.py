"""A search's own journal in the store: every change of every trial, so that it can go on."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from jobs.search.rows import Row
from jobs.store.runs import RunStore


class Diary:
    """The rows of a search, in memory and in `runs/<search>/events.jsonl`."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._rows: dict[int, Row] = {}
        self.spent = 0.0
        """Seconds that earlier tries of the search took."""
        for event in runs.events.tail(0)[0]:
            if event.get("event") == "trial":
                row = Row.of(event["row"])
                self._rows[row.number] = row
                self.spent = max(self.spent, float(event.get("spent", 0.0)))
        self._began = time.monotonic()

    @property
    def rows(self) -> list[Row]:
        """In the order of their numbers."""
        return [self._rows[number] for number in sorted(self._rows)]

    def row(self, number: int) -> Row | None:
        """One trial's row, if it was ever proposed."""
        return self._rows.get(number)

    def seconds(self) -> float:
        """Since the search began, what earlier tries took counted."""
        return self.spent + time.monotonic() - self._began

    def tokens(self) -> int:
        """Trained on, over all trials."""
        return sum(row.tokens for row in self._rows.values())

    def write(self, row: Row, **changes: Any) -> Row:
        """Keeps a row as it is now."""
        row = replace(row, **changes)
        self._rows[row.number] = row
        told = {"event": "trial", "time": time.time(), "spent": self.seconds()}
        self._runs.events.append({**told, "row": row.plain()})
        return row
