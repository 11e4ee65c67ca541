"""Fire schedules while their schedulers are killed: each due time must fire once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jobs.store.local import DirectoryStore
from orchestrator.registry import schedules
from orchestrator.registry.database import Database
from orchestrator.registry.schedules import NewSchedule
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.registry.builders import list_runs

START = datetime.fromisoformat("2026-01-10T00:00:00+00:00").timestamp()
HOUR = 3600.0
SCHEDULES = 4
KILL_CHANCE = 0.6
DEADLINE_S = 120.0


@dataclass(frozen=True)
class FiringTally:
    """Counts of the due times."""

    moments: int
    kills: int
    missed: int
    doubled: int
    runs: int
    """Number of runs, which should equal that of due times."""

    @property
    def is_good(self) -> bool:
        """Return whether each due time fired once and started one run."""
        return not self.missed and not self.doubled and self.runs == self.moments


def kill_during_firings(url: str, folder: Path, moments: int, chance: random.Random) -> FiringTally:
    """Fire four schedules under two schedulers, of which one or both are killed."""
    folder.mkdir(parents=True)
    hours, database = moments // SCHEDULES, Database(url)
    store = DirectoryStore(folder / "store").url("")
    clock = folder / "clock"
    _set(clock, START)
    for number in range(SCHEDULES):
        _add(database, f"hourly-{number}", store)
    pair = [_Process(url, store, clock, f"s{number}") for number in range(2)]
    kills = 0
    try:
        for hour in range(1, hours + 1):
            _set(clock, START + hour * HOUR)
            time.sleep(chance.uniform(0, 0.5))
            for process in pair:
                if chance.random() < KILL_CHANCE / 2:
                    process.kill_and_start()
                    kills += 1
        _wait(database, moments)
    finally:
        for process in pair:
            process.kill()
    tally = _count(database, hours, kills)
    database.close()
    return tally


class _Process:
    """A scheduler that is restarted under a new name after it was killed."""

    def __init__(self, url: str, store: str, clock: Path, name: str) -> None:
        self._words, self._name, self._life = (url, store, str(clock)), name, 0
        self._start()

    def kill_and_start(self) -> None:
        self.kill()
        self._start()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._life += 1
        module = "tests.benchmarks.service_kills.scheduler"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *self._words, f"{self._name}-{self._life}"]
        )


def _set(clock: Path, at: float) -> None:
    """Set the clock atomically: a reader never reads half a number."""
    new = clock.with_suffix(".new")
    new.write_text(repr(at))
    os.replace(new, clock)


def _add(database: Database, name: str, store: str) -> None:
    new = NewSchedule(
        name=name,
        cron="0 * * * *",
        kind="finetune",
        concurrency="queue",
        missed="all",
        spec=make_spec(store, name=name),
    )
    with database.write() as session:
        schedules.add(session, new, next_at=START + HOUR)


def _wait(database: Database, moments: int) -> None:
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        with database.read() as session:
            pages = schedules.list_page(session)
            if (
                sum(
                    len(schedules.list_firings(session, schedule, limit=10_000))
                    for schedule in pages
                )
                >= moments
            ):
                return
        time.sleep(0.2)


def _count(database: Database, hours: int, kills: int) -> FiringTally:
    due = {START + hour * HOUR for hour in range(1, hours + 1)}
    missed = doubled = runs_started = 0
    with database.read() as session:
        for schedule in schedules.list_page(session):
            firings = schedules.list_firings(session, schedule, limit=10_000)
            counts = Counter(firing.due_at for firing in firings)
            missed += len(due - set(counts))
            doubled += sum(counts.values()) - len(counts) + len(set(counts) - due)
            started = Counter(firing.run for firing in firings)
            doubled += sum(count - 1 for run, count in started.items() if run is not None)
            runs_started += len(list_runs(session, name=schedule.name))
    return FiringTally(hours * SCHEDULES, kills, missed, doubled, runs_started)
