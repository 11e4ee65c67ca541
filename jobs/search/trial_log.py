"""A search's own journal in the store: every change of every trial, so that it can go on."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from jobs.search.trial_record import TrialRecord
from jobs.store.runs.run_store import RunStore


class TrialLog:
    """The rows of a search, in memory and in `runs/<search>/events.jsonl`."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._records: dict[int, TrialRecord] = {}
        self.previous_seconds = 0.0
        """Seconds that earlier tries of the search took."""
        for event in runs.events.tail(0)[0]:
            if event.get("event") == "trial":
                record = TrialRecord.from_dict(event["row"])
                self._records[record.number] = record
                self.previous_seconds = max(self.previous_seconds, float(event.get("spent", 0.0)))
        self._started_at = time.monotonic()

    @property
    def records(self) -> list[TrialRecord]:
        """In the order of their numbers."""
        return [self._records[number] for number in sorted(self._records)]

    def get_record(self, number: int) -> TrialRecord | None:
        """One trial's row, if it was ever proposed."""
        return self._records.get(number)

    def count_seconds(self) -> float:
        """Since the search began, what earlier tries took counted."""
        return self.previous_seconds + time.monotonic() - self._started_at

    def count_tokens(self) -> int:
        """Trained on, over all trials."""
        return sum(record.tokens for record in self._records.values())

    def write(self, record: TrialRecord, **changes: Any) -> TrialRecord:
        """Keeps a row as it is now."""
        record = replace(record, **changes)
        self._records[record.number] = record
        event = {"event": "trial", "time": time.time(), "spent": self.count_seconds()}
        self._runs.events.append({**event, "row": record.to_dict()})
        return record
