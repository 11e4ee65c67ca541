"""A scheduler in its own process, whose clock a file sets, until it is killed.

Usage: `... scheduler DATABASE STORE CLOCK NAME`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from jobs.errors import JobsError
from orchestrator.control.intake import Intake
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.scheduler import Scheduler
from orchestrator.registry.database import Database
from tests.orchestrator.control.clock import SettableClock

LEASE_S = 1.0


def main(url: str, store: str, clock_file: str, name: str) -> None:
    """Fire without a long pause, so that a kill interrupts a firing."""
    database, clock = Database(url), SettableClock(0.0)
    scheduler = Scheduler(
        database,
        Intake(database, [store], ["default"]),
        clock,
        holder=name,
        metrics=ServiceMetrics(),
        fingerprinter=lambda project, location: None,
        lease_s=LEASE_S,
    )
    while True:
        clock.at = float(Path(clock_file).read_text())
        try:
            scheduler.fire_due()
        except JobsError as error:
            print(error, file=sys.stderr)
        time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
