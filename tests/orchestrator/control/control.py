"""A control plane on a fake cluster, driven step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from jobs.store.adapters.operations import commit
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cluster.base import JobState, JobStatus
from orchestrator.control.bulkheads.bulkhead import Bulkhead
from orchestrator.control.bulkheads.item_guard import ItemGuard
from orchestrator.control.bulkheads.look_keeper import LookKeeper
from orchestrator.control.dispatcher import FITS, Dispatcher, PlacementResult
from orchestrator.control.follower import NO_TRUST, ClusterRules, Follower
from orchestrator.control.intake import Intake
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.orphans import Orphans
from orchestrator.control.reconciler import Reconciler
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import run_flags, runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.tenancy.instances import read_instance
from orchestrator.registry.values import Run
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.control.builders import make_spec, open_project

PENDING, RUNNING, ABSENT = (
    JobStatus(JobState.PENDING),
    JobStatus(JobState.RUNNING),
    JobStatus(JobState.ABSENT),
)
SUCCEEDED = JobStatus(JobState.SUCCEEDED, exit_code=0)
KILLED = JobStatus(JobState.FAILED, exit_code=-9)


class ControlHarness:
    """One service with one cluster."""

    def __init__(self, database: Database, store: str, **rules: Any) -> None:
        self.database, self.store = database, store
        self.cluster = FakeCluster("default", RUNNING)
        self.instance = read_instance(database)
        self.rules = ClusterRules(service="here", instance=self.instance, **rules)
        self.observer = ServiceMetrics()
        self.open: Callable[[str], ObjectStore] = open_store
        self.guard_time = 0.0
        """The time by which the guard waits after a failure."""
        self.make_environment: Callable[[Run], dict[str, str]] = lambda run: {}
        self.fits: Callable[[Run], PlacementResult] = lambda run: FITS
        self.trust = NO_TRUST
        self.use_intake(database)
        self.main = self.make_reconciler("a")

    def use_intake(self, database: Database) -> None:
        """Accept runs through another database, which may fail."""
        self.intake = Intake(
            database,
            [self.store],
            ["default"],
            instance=self.instance,
            store_opener=lambda url: self.open(url),
        )

    def make_reconciler(self, holder: str) -> Reconciler:
        def opened(url: str) -> ObjectStore:
            return self.open(url)

        bulkhead = Bulkhead(
            ItemGuard(self.observer, clock=lambda: self.guard_time),
            LookKeeper(self.database, "cluster default", holder),
        )
        follower = Follower(
            self.database,
            self.cluster,
            self.rules,
            self.observer,
            store_opener=opened,
            bulkhead=bulkhead,
            trust=self.trust,
            make_environment=lambda run: self.make_environment(run),
        )
        dispatcher = Dispatcher(
            self.database,
            "default",
            self.rules,
            check_placement=lambda run: self.fits(run),
            bulkhead=bulkhead,
        )
        orphans = Orphans(
            self.database,
            self.cluster,
            service="here",
            instance=self.instance,
            stores=[self.store],
            metrics=self.observer,
            store_opener=opened,
            bulkhead=bulkhead,
        )
        return Reconciler(
            self.database,
            self.cluster,
            holder=holder,
            follower=follower,
            dispatcher=dispatcher,
            orphans=orphans,
            metrics=self.observer,
        )

    def submit(self, name: str = "chat", **changes: Any) -> Run:
        """Submit a run and return it; a new project may read anything."""
        if project := changes.get("project"):
            open_project(self.database, project)
        spec = make_spec(self.store, name=name)
        return self.intake.accept(SubmitRequest(spec=spec, **changes))[0]

    def reconcile(self, count: int = 1) -> None:
        for _ in range(count):
            self.main.reconcile()

    def read(self, run: Run) -> Run:
        with self.database.read() as session:
            return runs.get(session, run.id)

    def list_events(self, run: Run) -> list[str]:
        """List the kinds of the run's events in order."""
        with self.database.read() as session:
            return [event.kind for event in runs.list_events(session, run.id)]

    def stop(self, run: Run) -> None:
        with self.database.write() as session:
            run_flags.request_stop(session, runs.get(session, run.id))

    def end_retry_wait(self) -> None:
        """End the delay before the next attempt of all runs."""
        with self.database.write() as session:
            session.execute(text("UPDATE runs SET not_before = NULL"))

    def commit(self, run: Run, folder: Path, attempt: int = 1) -> None:
        """Commit an adapter as the run's job does."""
        adapter = folder if folder.exists() else make_adapter_folder(folder)
        commit(
            open_store(run.store), adapter, make_draft(name=run.name, run=run.id, attempt=attempt)
        )

    def list_submissions(self, run: Run) -> list[str]:
        """List the submissions of the run that started on the cluster."""
        return [
            job.submission for job in self.cluster.started_jobs if job.metadata["run"] == run.id
        ]

    def read_status(self, run: Run) -> Status:
        return self.read(run).status
