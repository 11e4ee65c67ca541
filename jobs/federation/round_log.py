"""Read and write the rounds of a federation and sum them by client. No torch."""

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
    """The rounds and the traffic of one client in the whole run."""

    client: int
    name: str
    rows: int | None = None
    """None if it never returned an update."""
    rounds: int = 0
    """The rounds that it was sampled in."""
    dropped_rounds: int = 0
    """Those of them without a valid update."""
    down: int = 0
    """Bytes that it was sent; `up` are those that it has sent."""
    up: int = 0
    loss: float | None = None
    """The mean loss of its steps in its last round with an update."""


def open_round_log(runs: RunStore) -> Journal | RemoteJournal:
    """Return the run's journal of rounds, one line for each."""
    return runs.open_journal(ROUNDS)


def sum_by_client(lines: Iterable[Mapping[str, Any]]) -> list[ClientTotals]:
    """Return each client's totals by number, from the lines of `rounds.jsonl`.

    A round that was repeated after a crash counts once, as in the ledger.
    """
    totals = dict[int, ClientTotals]()
    for line in {line["round"]: line for line in lines}.values():
        for entry in line["clients"]:
            number = entry["client"]
            client = totals.setdefault(number, ClientTotals(number, str(entry["name"])))
            client.rounds += 1
            client.down += entry["down"] + entry["payload"]
            client.up += entry["up"]
            if "failure" in entry:
                client.dropped_rounds += 1
            else:
                client.rows, client.loss = entry["rows"], entry["loss"]
    return [totals[number] for number in sorted(totals)]
