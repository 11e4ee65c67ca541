"""The service's threads: one for each cluster, one for the schedules, one that keeps house.

A thread that meets what nobody foresaw ends the service in words: half of a control plane is worse
than none, and another one is started in its place.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs.errors import JobsError
from orchestrator.cluster.door import Cluster
from orchestrator.registry import requests
from orchestrator.registry.counts import adapters_count, oldest_planned, runs_by_status
from orchestrator.registry.database import Database
from orchestrator.service.clock import Clock, DatabaseClock
from orchestrator.service.config import ServiceConfig
from orchestrator.service.dispatcher import Dispatcher
from orchestrator.service.follower import Follower, Rules
from orchestrator.service.intake import Intake
from orchestrator.service.observer import Observer
from orchestrator.service.orphans import Orphans
from orchestrator.service.placement import Placement
from orchestrator.service.reconciler import Reconciler
from orchestrator.service.scheduler import Scheduler

TICK_S = 1.0
"""Between two looks at the schedules, whose moments are whole minutes."""
HOUSE_S = 15.0
PATIENCE_S = 10.0
"""That a thread has to end its step."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    name: str
    step: Callable[[], object]
    close: Callable[[], None]
    every_s: float
    wake: threading.Event


class Service:
    """All that runs in the background, and what the API needs of it."""

    def __init__(
        self,
        config: ServiceConfig,
        database: Database,
        clusters: dict[str, Cluster],
        *,
        clock: Clock | None = None,
        rules: Callable[[str], Rules] | None = None,
    ) -> None:
        self.config, self.database, self.clusters = config, database, clusters
        self.observer = Observer()
        self.intake = Intake(database, config.stores, list(clusters))
        self.failed: str | None = None
        """What ended it, where something did."""
        self._holder = f"{os.uname().nodename[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._rules = rules or self._configured
        self.clock = clock or DatabaseClock(database)
        self.scheduler = Scheduler(
            database,
            self.intake,
            self.clock,
            holder=self._holder,
            observer=self.observer,
            lease_s=config.lease_s,
        )
        self.reconcilers = {name: self._reconciler(name) for name in clusters}
        self._over = threading.Event()
        self._works = self._all_works()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts the threads."""
        for work in self._works:
            thread = threading.Thread(target=self._run, args=(work,), name=work.name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self, cluster: str) -> None:
        """Something changed for this cluster: look now, and not only in a while."""
        for work in self._works:
            if work.name == f"cluster {cluster}":
                work.wake.set()

    def close(self) -> None:
        """Ends the threads and gives the leases back, so that another service goes on at once."""
        self._over.set()
        for work in self._works:
            work.wake.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for cluster in self.clusters.values():
            cluster.close()

    @property
    def alive(self) -> bool:
        """Whether every thread is at work."""
        return self.failed is None and all(thread.is_alive() for thread in self._threads)

    def keep_house(self) -> None:
        """Counts for the gauges; forgets what nobody repeats any more."""
        with self.database.read() as session:
            by_status = runs_by_status(session)
            oldest, kept = oldest_planned(session), adapters_count(session)
        for status, count in by_status.items():
            self.observer.runs.labels(status).set(count)
        self.observer.oldest.set(oldest)
        self.observer.adapters.set(kept)
        with self.database.write() as session:
            requests.forget(session)

    def _all_works(self) -> list[_Work]:
        look = self.config.look_s
        works = [
            _Work(f"cluster {name}", one.step, one.close, look, threading.Event())
            for name, one in self.reconcilers.items()
        ]
        schedules = self.scheduler
        works.append(_Work("scheduler", schedules.step, schedules.close, TICK_S, threading.Event()))
        works.append(_Work("house", self.keep_house, _nothing, HOUSE_S, threading.Event()))
        return works

    def _run(self, work: _Work) -> None:
        try:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    work.step()
                except JobsError as error:
                    # The database or a store does not answer: nothing was decided, so look again.
                    log.warning("%s: %s", work.name, error)
                took = time.monotonic() - began
                if work.wake.wait(work.every_s):
                    # With 200 submissions a second there is always news: a quarter of the time is
                    # for looking, the rest for those who submit.
                    self._over.wait(min(3 * took, work.every_s))
                work.wake.clear()
        except BaseException as error:
            log.exception("%s ended", work.name)
            self.failed = f"{work.name}: {type(error).__name__}"
            raise
        finally:
            self._leave(work)

    def _leave(self, work: _Work) -> None:
        try:
            work.close()
        except JobsError as error:
            log.warning("%s: its lease lapses by itself: %s", work.name, error)

    def _configured(self, name: str) -> Rules:
        cluster = self.config.clusters[name]
        return Rules(
            service=self.config.name,
            max_runs=cluster.max_runs,
            max_attempts=self.config.max_attempts,
        )

    def _reconciler(self, name: str) -> Reconciler:
        cluster, rules = self.clusters[name], self._rules(name)
        about = self.config.clusters[name]
        placement = Placement(cluster, shares_files=about.shares_files, grows=about.grows)
        return Reconciler(
            self.database,
            cluster,
            holder=self._holder,
            follower=Follower(self.database, cluster, rules, self.observer),
            dispatcher=Dispatcher(self.database, name, rules, fits=placement),
            orphans=Orphans(
                self.database, cluster, service=rules.service, stores=self.config.stores
            ),
            observer=self.observer,
            lease_s=self.config.lease_s,
        )


def _nothing() -> None:
    return
