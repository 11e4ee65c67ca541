"""The threads of the service: one per cluster, one for schedules, one for housekeeping.

An unexpected exception in a thread is logged and ends the service: half of a control plane is worse
than none, and a supervisor outside starts another one.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.errors import JobsError
from orchestrator.cluster.base import Cluster
from orchestrator.control.clock import Clock, DatabaseClock
from orchestrator.control.config import ServiceConfig
from orchestrator.control.dispatcher import Dispatcher
from orchestrator.control.follower import ClusterRules, Follower
from orchestrator.control.intake import Intake
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.orphans import Orphans
from orchestrator.control.placement import Placement
from orchestrator.control.reconciler import Reconciler
from orchestrator.control.scheduler import Scheduler
from orchestrator.registry import idempotency
from orchestrator.registry.counts import count_adapters, count_runs_by_status, measure_oldest_wait
from orchestrator.registry.database import Database

SCHEDULER_INTERVAL_S = 1.0
"""Schedules are due at whole minutes."""
HOUSEKEEPING_INTERVAL_S = 15.0
JOIN_TIMEOUT_S = 10.0
"""A thread may take this long to end its step."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _BackgroundTask:
    name: str
    interval_s: float
    run_step: Callable[[], object]
    close: Callable[[], None] = lambda: None
    wake: threading.Event = field(default_factory=threading.Event)


class Service:
    """The background threads, and what the API needs of them."""

    def __init__(
        self,
        config: ServiceConfig,
        database: Database,
        clusters: dict[str, Cluster],
        *,
        clock: Clock | None = None,
        rules: Callable[[str], ClusterRules] | None = None,
    ) -> None:
        self.config, self.database, self.clusters = config, database, clusters
        self.metrics = ServiceMetrics()
        self.intake = Intake(database, config.stores, list(clusters))
        self.failure: str | None = None
        """The error that ended the service, if any."""
        self._holder = f"{os.uname().nodename[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._rules = rules or self._make_rules
        self.clock = clock or DatabaseClock(database)
        self.scheduler = Scheduler(
            database,
            self.intake,
            self.clock,
            holder=self._holder,
            metrics=self.metrics,
            lease_s=config.lease_s,
        )
        self.reconcilers = {name: self._make_reconciler(name) for name in clusters}
        self._stopping = threading.Event()
        self._tasks = self._make_tasks()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        for task in self._tasks:
            thread = threading.Thread(
                target=self._run_task, args=(task,), name=task.name, daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def wake(self, cluster: str) -> None:
        """Reconcile a cluster now, because something changed."""
        for task in self._tasks:
            if task.name == f"cluster {cluster}":
                task.wake.set()

    def close(self) -> None:
        """Stop the threads and release the leases, so that another service continues at once."""
        self._stopping.set()
        for task in self._tasks:
            task.wake.set()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        for cluster in self.clusters.values():
            cluster.close()

    @property
    def is_alive(self) -> bool:
        """Return whether every thread is running."""
        return self.failure is None and all(thread.is_alive() for thread in self._threads)

    def run_housekeeping(self) -> None:
        """Update the gauges and delete expired idempotency keys."""
        with self.database.read() as session:
            by_status = count_runs_by_status(session)
            oldest, adapters = measure_oldest_wait(session), count_adapters(session)
        for status, count in by_status.items():
            self.metrics.runs.labels(status).set(count)
        self.metrics.oldest_planned_s.set(oldest)
        self.metrics.adapters.set(adapters)
        with self.database.write() as session:
            idempotency.delete_expired(session)

    def _make_tasks(self) -> list[_BackgroundTask]:
        poll_s = self.config.poll_interval_s
        tasks = [
            _BackgroundTask(f"cluster {name}", poll_s, reconciler.reconcile, reconciler.close)
            for name, reconciler in self.reconcilers.items()
        ]
        fire, close = self.scheduler.fire_due, self.scheduler.close
        tasks.append(_BackgroundTask("scheduler", SCHEDULER_INTERVAL_S, fire, close))
        housekeeping = self.run_housekeeping
        tasks.append(_BackgroundTask("housekeeping", HOUSEKEEPING_INTERVAL_S, housekeeping))
        return tasks

    def _run_task(self, task: _BackgroundTask) -> None:
        try:
            while not self._stopping.is_set():
                started_at = time.monotonic()
                try:
                    task.run_step()
                except JobsError as error:
                    # The database or a store does not answer; nothing was decided, so try again.
                    log.warning("%s: %s", task.name, error)
                elapsed = time.monotonic() - started_at
                if task.wake.wait(task.interval_s):
                    # Under load every step is woken at once: spend at most a quarter of the time on
                    # steps, and leave the rest to submissions.
                    self._stopping.wait(min(3 * elapsed, task.interval_s))
                task.wake.clear()
        except BaseException as error:
            log.exception("%s ended", task.name)
            self.failure = f"{task.name}: {type(error).__name__}"
            raise
        finally:
            self._close_task(task)

    def _close_task(self, task: _BackgroundTask) -> None:
        try:
            task.close()
        except JobsError as error:
            log.warning("%s: cannot release its lease, which will expire: %s", task.name, error)

    def _make_rules(self, name: str) -> ClusterRules:
        cluster = self.config.clusters[name]
        return ClusterRules(
            service=self.config.name,
            max_runs=cluster.max_runs,
            max_attempts=self.config.max_attempts,
        )

    def _make_reconciler(self, name: str) -> Reconciler:
        cluster, rules = self.clusters[name], self._rules(name)
        cluster_config = self.config.clusters[name]
        placement = Placement(
            cluster,
            shared_filesystem=cluster_config.shared_filesystem,
            autoscaling=cluster_config.autoscaling,
        )
        return Reconciler(
            self.database,
            cluster,
            holder=self._holder,
            follower=Follower(self.database, cluster, rules, self.metrics),
            dispatcher=Dispatcher(self.database, name, rules, check_placement=placement),
            orphans=Orphans(
                self.database, cluster, service=rules.service, stores=self.config.stores
            ),
            metrics=self.metrics,
            lease_s=self.config.lease_s,
        )
