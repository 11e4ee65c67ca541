"""The log of a search in the store: every change of every trial, from which it resumes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from jobs.search.trial_record import TrialRecord
from jobs.store.runs.run_store import RunStore


class TrialLog:
    """The records of a search, in memory and in `runs/<search>/events.jsonl`."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._records: dict[int, TrialRecord] = {}
        self.previous_seconds = 0.0
        """Duration of the earlier attempts of the search."""
        for event in runs.events.tail(0)[0]:
            if event.get("event") == "trial":
                record = TrialRecord.from_dict(event["record"])
                self._records[record.number] = record
                self.previous_seconds = max(self.previous_seconds, float(event.get("seconds", 0.0)))
        self._started_at = time.monotonic()

    @property
    def records(self) -> list[TrialRecord]:
        """Return the records in the order of their numbers."""
        return [self._records[number] for number in sorted(self._records)]

    def get_record(self, number: int) -> TrialRecord | None:
        """Return the record of a trial, or None if it was never proposed."""
        return self._records.get(number)

    def count_seconds(self) -> float:
        """Return the duration of the search, earlier attempts included."""
        return self.previous_seconds + time.monotonic() - self._started_at

    def count_tokens(self) -> int:
        """Return the tokens trained on, over all trials."""
        return sum(record.tokens for record in self._records.values())

    def write(self, record: TrialRecord, **changes: Any) -> TrialRecord:
        """Append a record with changes, and return it."""
        record = replace(record, **changes)
        self._records[record.number] = record
        event = {"event": "trial", "time": time.time(), "seconds": self.count_seconds()}
        self._runs.events.append({**event, "record": record.to_dict()})
        return record
