"""A federation's rounds as its run keeps them, and what they come to for each client. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.store.runs.journal import Journal
from jobs.store.runs.remote_journal import RemoteJournal
from jobs.store.runs.run_store import RunStore

ROUNDS = "rounds.jsonl"


@dataclasses.dataclass
class ClientTotals:
    """What one client did in all rounds, and what that cost its link."""

    client: int
    name: str
    rows: int | None = None
    """None of one that never answered."""
    rounds: int = 0
    """In which it was drawn."""
    dropped_rounds: int = 0
    """Of these."""
    down: int = 0
    """Bytes, as `up`."""
    up: int = 0
    loss: float | None = None
    """The mean of its steps' in the last round that it answered."""


def open_round_log(runs: RunStore) -> Journal | RemoteJournal:
    """The journal of the run's rounds, a line each."""
    return runs.open_journal(ROUNDS)


def sum_by_client(lines: Iterable[Mapping[str, Any]]) -> list[ClientTotals]:
    """By number, from the lines of `rounds.jsonl`.

    A round that was repeated after a death counts once, as in the ledger.
    """
    totals = dict[int, ClientTotals]()
    for line in {line["round"]: line for line in lines}.values():
        for entry in line["clients"]:
            number = entry["client"]
            client = totals.setdefault(number, ClientTotals(number, str(entry["name"])))
            client.rounds += 1
            client.down += entry["down"] + entry["kit"]
            client.up += entry["up"]
            if "left" in entry:
                client.dropped_rounds += 1
            else:
                client.rows, client.loss = entry["rows"], entry["loss"]
    return [totals[number] for number in sorted(totals)]
