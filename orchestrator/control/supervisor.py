"""The threads of the service: one per cluster, and one each for schedules, deployments,
housekeeping, retention and liveness.

An unexpected exception at an item (a run, a schedule, a job) ends the item. One in the frame of a
thread is logged and ends the service: half of a control plane is worse than none, and a supervisor
outside starts another one.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from jobs.errors import JobsError
from orchestrator.cluster.base import Cluster
from orchestrator.control.bulkheads.bulkhead import Bulkhead, make_bulkhead
from orchestrator.control.bulkheads.item_guard import ItemGuard
from orchestrator.control.bulkheads.loop_health import LoopHealth
from orchestrator.control.bulkheads.write_probe import WriteProbe
from orchestrator.control.clock import Clock, DatabaseClock
from orchestrator.control.config import ServiceConfig
from orchestrator.control.dispatcher import Dispatcher
from orchestrator.control.follower import ClusterRules, Follower
from orchestrator.control.intake import Intake
from orchestrator.control.looking.fingerprints import Fingerprints
from orchestrator.control.looking.look_runner import LookRunner
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.orphans import Orphans
from orchestrator.control.placement import Placement
from orchestrator.control.projects.credentials import ProjectCredentials
from orchestrator.control.reconciler import Reconciler
from orchestrator.control.retention.retention import Retention
from orchestrator.control.scheduler import Scheduler
from orchestrator.control.signing.service_trust import load_service_trust
from orchestrator.deployments.deployment_follower import DeploymentFollower
from orchestrator.registry import projects
from orchestrator.registry.counts import count_adapters, count_runs_by_status, measure_oldest_wait
from orchestrator.registry.database import Database
from orchestrator.registry.tenancy import audit_log, looks
from orchestrator.registry.tenancy.instances import read_instance
from orchestrator.registry.values import Run

SCHEDULER, HOUSEKEEPING = "scheduler", "housekeeping"
RETENTION, LIVENESS = "retention", "liveness"
DEPLOYMENTS = "deployments"
DEPLOYMENT_INTERVAL_S = 2.0
"""A promotion is noticed after so long."""
SCHEDULER_INTERVAL_S = 1.0
"""Schedules are due at whole minutes."""
HOUSEKEEPING_INTERVAL_S = 15.0
BEATS_PER_LEASE = 4
"""Proofs of life within the time after which a process counts as dead."""
RETENTION_INTERVAL_S = 60.0
AUDIT_EXPIRY_INTERVAL_S = 86400.0
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
        self.trust = load_service_trust(config)
        self.metrics = ServiceMetrics()
        self.instance = read_instance(database)
        self.credentials = ProjectCredentials(
            config.projects, config.stores, jobs=config.jobs, list_places=self._list_places
        )
        self.intake = Intake(
            database,
            config.stores,
            list(clusters),
            masks=config.masks,
            instance=self.instance,
            find_store_fault=self.credentials.find_fault,
        )
        self.failure: str | None = None
        """The error that ended the service, if any."""
        self._holder = f"{os.uname().nodename[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._rules = rules or self._make_rules
        self.clock = clock or DatabaseClock(database)
        self.health = LoopHealth(self._list_intervals())
        self.write_probe = WriteProbe(self._beat)
        self._bulkheads = {
            name: self._make_bulkhead(name) for name in (*map(_name_loop, clusters), SCHEDULER)
        }
        self.looks = LookRunner(make_environment=self.credentials.make_look_environment)
        self.scheduler = Scheduler(
            database,
            self.intake,
            self.clock,
            holder=self._holder,
            metrics=self.metrics,
            fingerprinter=Fingerprints(self.looks),
            lease_s=config.lease_s,
            bulkhead=self._bulkheads[SCHEDULER],
        )
        self.retention = Retention(database, config.retention, instance=self.instance)
        beat = partial(self.health.beat, DEPLOYMENTS)
        self.deployments = DeploymentFollower(
            database,
            config.serving,
            config.stores,
            holder=self._holder,
            guard=ItemGuard(self.metrics, on_item=beat),
            on_progress=beat,
            lease_s=config.lease_s,
        )
        self.reconcilers = {name: self._make_reconciler(name) for name in clusters}
        self._next_audit_expiry = 0.0
        self._stopping = threading.Event()
        self._tasks = self._make_tasks()
        self._threads: list[threading.Thread] = []
        self._measure_ages()

    def start(self) -> None:
        """Start the threads. Raise DatabaseUnreachable."""
        self._beat()
        log.info("service %s, slora_instance %s", self.config.name, self.instance)
        for task in self._tasks:
            thread = threading.Thread(
                target=self._run_task, args=(task,), name=task.name, daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def wake(self, cluster: str) -> None:
        """Reconcile a cluster now, because something changed."""
        for task in self._tasks:
            if task.name == _name_loop(cluster):
                task.wake.set()

    def wake_deployments(self) -> None:
        """Follow the deployments now, because somebody deployed or promoted."""
        self.deployments.retry_soon()
        for task in self._tasks:
            if task.name == DEPLOYMENTS:
                task.wake.set()

    def close(self) -> None:
        """Stop the threads and release the leases, so that another service continues at once."""
        self._stopping.set()
        for task in self._tasks:
            task.wake.set()
        self.looks.close()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        self._close_looks()
        for cluster in self.clusters.values():
            cluster.close()

    @property
    def is_alive(self) -> bool:
        """Return whether every thread is running."""
        return self.failure is None and all(thread.is_alive() for thread in self._threads)

    def run_housekeeping(self) -> None:
        """Update the gauges, and delete expired entries of the audit log."""
        with self.database.read() as session:
            by_status = count_runs_by_status(session)
            oldest, adapters = measure_oldest_wait(session), count_adapters(session)
        for status, count in by_status.items():
            self.metrics.runs.labels(status).set(count)
        self.metrics.oldest_planned_s.set(oldest)
        self.metrics.adapters.set(adapters)
        with self.database.write() as session:
            looks.delete_expired(session)
        self._expire_audit()

    def _beat(self) -> None:
        """Write that this process lives, so that its looks are not those of a dead one."""
        with self.database.write() as session:
            looks.beat(session, self._holder)

    def _close_looks(self) -> None:
        """Forget what the loops are looking at, unless one hangs: then it is what it hangs at."""
        late = self.health.find_late_loops()
        try:
            for name, bulkhead in self._bulkheads.items():
                if name not in late:
                    bulkhead.looks.close()
            with self.database.write() as session:
                looks.end_process(session, self._holder)
        except JobsError as error:
            log.warning("cannot delete the looks of this process: %s", error)

    def _measure_ages(self) -> None:
        """Compute the ages of loops and of clusters' answers whenever the metrics are read."""
        for loop in self._list_intervals():
            measure = partial(self.health.measure_age, loop)
            self.metrics.loop_age_s.labels(loop).set_function(measure)
        for name, reconciler in self.reconcilers.items():
            self.metrics.cluster_age_s.labels(name).set_function(reconciler.measure_answer_age)

    def _list_intervals(self) -> dict[str, float]:
        poll_s = self.config.poll_interval_s
        return {
            **{_name_loop(name): poll_s for name in self.clusters},
            SCHEDULER: SCHEDULER_INTERVAL_S,
            HOUSEKEEPING: HOUSEKEEPING_INTERVAL_S,
            RETENTION: RETENTION_INTERVAL_S,
            LIVENESS: self.config.lease_s / BEATS_PER_LEASE,
            **({DEPLOYMENTS: DEPLOYMENT_INTERVAL_S} if self.config.serving else {}),
        }

    def _make_bulkhead(self, loop: str) -> Bulkhead:
        return make_bulkhead(
            self.database,
            loop,
            metrics=self.metrics,
            holder=self._holder,
            timeout_s=self.config.lease_s,
            on_item=partial(self.health.beat, loop),
        )

    def _expire_audit(self) -> None:
        """Apply the retention of the audit log, once a day: each time may add an entry."""
        if time.monotonic() >= self._next_audit_expiry:
            with self.database.write() as session:
                audit_log.apply_retention(session, days=self.config.audit_days)
            self._next_audit_expiry = time.monotonic() + AUDIT_EXPIRY_INTERVAL_S

    def _make_tasks(self) -> list[_BackgroundTask]:
        intervals_s = self._list_intervals()
        clusters = [
            _BackgroundTask(loop, intervals_s[loop], reconciler.reconcile, reconciler.close)
            for loop, reconciler in (
                (_name_loop(name), reconciler) for name, reconciler in self.reconcilers.items()
            )
        ]
        fire, close = self.scheduler.fire_due, self.scheduler.close
        retain = self.retention.apply_batch
        follower = self.deployments
        serving = [
            _BackgroundTask(loop, interval_s, follower.follow_all, follower.close)
            for loop, interval_s in intervals_s.items()
            if loop == DEPLOYMENTS
        ]
        return [
            *clusters,
            *serving,
            _BackgroundTask(SCHEDULER, intervals_s[SCHEDULER], fire, close),
            _BackgroundTask(HOUSEKEEPING, intervals_s[HOUSEKEEPING], self.run_housekeeping),
            _BackgroundTask(RETENTION, intervals_s[RETENTION], retain),
            _BackgroundTask(LIVENESS, intervals_s[LIVENESS], self._beat),
        ]

    def _run_task(self, task: _BackgroundTask) -> None:
        try:
            while not self._stopping.is_set():
                started_at = time.monotonic()
                self.health.beat(task.name)
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

    def _list_places(self, project: str) -> tuple[str, ...]:
        with self.database.read() as session:
            inputs = projects.find(session, project)
        return (*(inputs.places or ()), *(inputs.models or ()))

    def _make_job_environment(self, run: Run) -> dict[str, str]:
        return self.credentials.make_job_environment(run.project, run.store, run)

    def _make_rules(self, name: str) -> ClusterRules:
        cluster = self.config.clusters[name]
        return ClusterRules(
            service=self.config.name,
            max_runs=cluster.max_runs,
            max_attempts=self.config.max_attempts,
            warm_workers=cluster.warm_workers,
            stores=self.config.stores,
            masks=self.config.masks,
        )

    def _make_reconciler(self, name: str) -> Reconciler:
        cluster, rules = self.clusters[name], replace(self._rules(name), instance=self.instance)
        cluster_config, bulkhead = self.config.clusters[name], self._bulkheads[_name_loop(name)]
        placement = Placement(
            cluster,
            self.looks,
            shared_filesystem=cluster_config.shared_filesystem,
            autoscaling=cluster_config.autoscaling,
            find_places=self.intake.find_places,
            wake=lambda: self.wake(name),
        )
        return Reconciler(
            self.database,
            cluster,
            holder=self._holder,
            follower=Follower(
                self.database,
                cluster,
                rules,
                self.metrics,
                bulkhead=bulkhead,
                trust=self.trust,
                make_environment=self._make_job_environment,
            ),
            dispatcher=Dispatcher(
                self.database,
                name,
                rules,
                check_placement=placement,
                is_checked=placement.has_result,
                bulkhead=bulkhead,
            ),
            orphans=Orphans(
                self.database,
                cluster,
                service=rules.service,
                instance=rules.instance,
                stores=self.config.stores,
                metrics=self.metrics,
                bulkhead=bulkhead,
            ),
            metrics=self.metrics,
            lease_s=self.config.lease_s,
        )


def _name_loop(cluster: str) -> str:
    return f"cluster {cluster}"
