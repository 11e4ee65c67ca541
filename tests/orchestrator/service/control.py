"""A control plane on a stand-in cluster: what is asked of it, what it did, and time that is set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from jobs.store.adapters import commit
from jobs.store.objects import ObjectStore, open_store
from orchestrator.cluster.door import Seen, Sight
from orchestrator.cluster.standin import FakeCluster
from orchestrator.registry import marks, runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.together import Together
from orchestrator.registry.values import Run
from orchestrator.service.dispatcher import FITS, Dispatcher, Verdict
from orchestrator.service.follower import Follower, Rules
from orchestrator.service.intake import Intake, Submission
from orchestrator.service.observer import Observer
from orchestrator.service.orphans import Orphans
from orchestrator.service.reconciler import Reconciler
from tests.jobs.store.made import adapter_folder, draft
from tests.orchestrator.service.made import spec_of

PENDING, RUNNING, ABSENT = Sight(Seen.PENDING), Sight(Seen.RUNNING), Sight(Seen.ABSENT)
SUCCEEDED = Sight(Seen.SUCCEEDED, exit_code=0)
KILLED = Sight(Seen.FAILED, exit_code=-9)


class Control:
    """One service's part for one cluster, step by step."""

    def __init__(self, database: Database, store: str, **rules: Any) -> None:
        self.database, self.store = database, store
        self.cluster = FakeCluster("default", RUNNING)
        self.rules = Rules(service="here", **rules)
        self.observer = Observer()
        self.open: Callable[[str], ObjectStore] = open_store
        self.fits: Callable[[Run], Verdict] = lambda run: FITS
        self.use(Together(database))
        self.main = self.reconciler("a")

    def use(self, together: Together) -> None:
        """Runs come in by these writes."""
        self.intake = Intake(
            self.database,
            [self.store],
            ["default"],
            opened=lambda url: self.open(url),
            together=together,
        )

    def reconciler(self, holder: str) -> Reconciler:
        def opened(url: str) -> ObjectStore:
            return self.open(url)

        follower = Follower(self.database, self.cluster, self.rules, self.observer, opened=opened)
        dispatcher = Dispatcher(
            self.database, "default", self.rules, fits=lambda run: self.fits(run)
        )
        orphans = Orphans(
            self.database, self.cluster, service="here", stores=[self.store], opened=opened
        )
        return Reconciler(
            self.database,
            self.cluster,
            holder=holder,
            follower=follower,
            dispatcher=dispatcher,
            orphans=orphans,
            observer=self.observer,
        )

    def asked(self, name: str = "chat", **changes: Any) -> Run:
        """A run that was accepted."""
        spec = spec_of(self.store, name=name)
        return self.intake.accept(Submission(spec=spec, **changes))[0]

    def steps(self, count: int = 1) -> None:
        for _ in range(count):
            self.main.step()

    def now(self, run: Run) -> Run:
        with self.database.read() as session:
            return runs.get(session, run.id)

    def path(self, run: Run) -> list[str]:
        """All that happened to it, in its order."""
        with self.database.read() as session:
            return [event.kind for event in runs.events(session, run.id)]

    def stop(self, run: Run) -> None:
        with self.database.write() as session:
            marks.ask_stop(session, runs.get(session, run.id))

    def wait_over(self) -> None:
        """As if the time before another attempt had passed."""
        with self.database.write() as session:
            session.execute(text("UPDATE runs SET not_before = NULL"))

    def commits(self, run: Run, folder: Path, attempt: int = 1) -> None:
        """As the run's job does."""
        there = folder if folder.exists() else adapter_folder(folder)
        commit(open_store(self.store), there, draft(name=run.name, run=run.id, attempt=attempt))

    def starts(self, run: Run) -> list[str]:
        """The submissions of it that began on the cluster."""
        return [job.submission for job in self.cluster.started if job.metadata["run"] == run.id]

    def status(self, run: Run) -> Status:
        return self.now(run).status
