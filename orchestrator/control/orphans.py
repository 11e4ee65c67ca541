"""Find jobs on a cluster that belong to no active run: adopt them if the store has their run, else
stop them.

Only jobs with this service's name are handled: other services, and users of `ray job submit`, have
jobs on the same cluster. A job with this name that another registry submitted is foreign: two
services have one name by mistake, or this registry was rebuilt without the id of the lost one. Such
a job is reported and left alone. A job without the id of a registry, which an older version of
slora submitted, belongs to its name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from sqlalchemy.orm import Session

from jobs.errors import StoreError
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cluster.base import Cluster, JobState, JobStatus
from orchestrator.control.bulkheads.bulkhead import Bulkhead, make_bulkhead
from orchestrator.control.job_spec import INSTANCE_KEY, SERVICE_KEY
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.registry import projects, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.lifecycle import FINAL, Status
from orchestrator.registry.rebuild.adopt import adopt
from orchestrator.registry.rebuild.restore import STORE_ORIGIN
from orchestrator.registry.rebuild.untrusted import is_run_id
from orchestrator.registry.tenancy import audit_log, quarantine
from orchestrator.registry.tenancy.audit_log import SERVICE
from orchestrator.registry.tenancy.looks import LookVerdict
from orchestrator.registry.tenancy.project_store import get_project_store
from orchestrator.registry.values import DEFAULT_PROJECT, Run, is_name

_SUBMISSION_PATTERN = re.compile(r"(?P<run>.+)-a(?P<attempt>[1-9][0-9]{0,8})")

FOREIGN_ATTEMPT = 0
"""Number of an attempt that no run of this registry has."""

log = logging.getLogger(__name__)


class Orphans:
    """Handles the orphaned jobs of one cluster."""

    def __init__(
        self,
        database: Database,
        cluster: Cluster,
        *,
        service: str,
        instance: str,
        stores: Sequence[str],
        metrics: ServiceMetrics,
        store_opener: Callable[[str], ObjectStore] = open_store,
        bulkhead: Bulkhead | None = None,
    ) -> None:
        self._database, self._cluster, self._metrics = database, cluster, metrics
        bulkhead = bulkhead or make_bulkhead(database, f"orphans.{cluster.name}")
        self._guard, self._looks = bulkhead.guard, bulkhead.looks
        self._service, self._instance = service, instance
        self._stores, self._open = stores, store_opener
        self._reported_jobs = set[str]()
        """Foreign jobs that the log has already."""
        self._recorded_stops = set[str]()
        """Live jobs whose stop is in the audit log: each pass stops them until they have ended."""

    def reconcile_orphans(self, job_statuses: Mapping[str, JobStatus]) -> None:
        """Adopt or stop the live jobs without a run. Raise ClusterUnreachable.

        A job in quarantine is neither adopted nor stopped.
        """
        self._recorded_stops &= job_statuses.keys()
        with self._database.read() as session:
            quarantined = quarantine.find_reasons(session, "job")
        for submission, run, attempt in self._iterate_own_jobs(job_statuses):
            if submission not in quarantined:
                job = job_statuses[submission]
                step = partial(self._reconcile_job, submission, run, attempt, job)
                self._guard.run("job", submission, step, end=lambda failure: None)

    def exclude_foreign_jobs(self, job_statuses: Mapping[str, JobStatus]) -> dict[str, JobStatus]:
        """Return the jobs without those of another registry, and report the live ones of these."""
        foreign = {
            submission: job for submission, job in job_statuses.items() if self._is_foreign(job)
        }
        alive = {submission for submission, job in foreign.items() if _is_alive(job)}
        self._metrics.foreign_jobs.labels(self._cluster.name).set(len(alive))
        for submission in sorted(alive - self._reported_jobs):
            log.error(
                "job %s on cluster %s is of another registry (%s=%s, not %s) with this service's "
                "name %s: leaving it alone. Give each service its own `name`; a registry that was "
                "rebuilt takes over jobs by `slora registry rebuild --instance ID`",
                submission, self._cluster.name, INSTANCE_KEY,
                foreign[submission].metadata[INSTANCE_KEY][:64], self._instance, self._service,
            )  # fmt: skip
        self._reported_jobs = alive
        return {
            submission: job for submission, job in job_statuses.items() if submission not in foreign
        }

    def get_live_attempts(self, job_statuses: Mapping[str, JobStatus]) -> dict[str, int]:
        """Return the attempt of each run with a live job, FOREIGN_ATTEMPT if that is foreign."""
        attempts = {run: attempt for _, run, attempt in self._iterate_own_jobs(job_statuses)}
        foreign_runs = (
            match["run"]
            for submission, job in job_statuses.items()
            if self._is_foreign(job)
            and _is_alive(job)
            and (match := _SUBMISSION_PATTERN.fullmatch(submission))
        )
        return attempts | dict.fromkeys(foreign_runs, FOREIGN_ATTEMPT)

    def _is_foreign(self, job: JobStatus) -> bool:
        instance = job.metadata.get(INSTANCE_KEY)
        is_namesake = job.metadata.get(SERVICE_KEY) == self._service
        return is_namesake and instance is not None and instance != self._instance

    def _iterate_own_jobs(
        self, job_statuses: Mapping[str, JobStatus]
    ) -> Iterator[tuple[str, str, int]]:
        """Yield the submission, run and attempt of each live job of this service."""
        for submission, job in job_statuses.items():
            match = _SUBMISSION_PATTERN.fullmatch(submission)
            if match is None or not _is_alive(job) or self._is_foreign(job):
                continue
            # Anybody may submit a job with any name; one that is no run id is not of this service.
            if not is_run_id(match["run"]):
                continue
            if job.metadata.get(SERVICE_KEY) == self._service:
                yield submission, match["run"], int(match["attempt"])

    def _reconcile_job(self, submission: str, run_id: str, attempt: int, job: JobStatus) -> None:
        run = self._find_run(run_id)
        if run is None or _is_rebuilt(run, attempt):
            try:
                with self._looks.look("job", submission) as verdict:
                    if verdict is not LookVerdict.CLEAR:
                        return
                    run = self._adopt_run(run_id, attempt, job)
            except StoreError as error:
                # Nobody can tell whose job it is now, and unreachable is not dead.
                log.warning("job %s: cannot read its store: %s", submission, error)
                return
        if run is None:
            log.warning("job %s belongs to no known run: stopping it", submission)
            self._stop_job(submission, None)
        elif run.status in FINAL or attempt < run.attempt or _is_superseded(run, attempt):
            log.warning(
                "job %s is outdated, its run is at attempt %s: stopping it", submission, run.attempt
            )
            self._stop_job(submission, run)

    def _stop_job(self, submission: str, run: Run | None) -> None:
        """Record the stop before the job is stopped, so that no crash leaves it unrecorded."""
        if submission not in self._recorded_stops:
            with self._database.write() as session:
                _record_job_stop(session, submission, run, self._cluster.name)
            self._recorded_stops.add(submission)
        self._cluster.stop(submission)

    def _find_run(self, run_id: str) -> Run | None:
        try:
            with self._database.read() as session:
                return runs.get(session, run_id)
        except UnknownItem:
            return None

    def _adopt_run(self, run_id: str, attempt: int, job: JobStatus) -> Run | None:
        """Restore a run that the registry lost from the part of a store that has it."""
        for store in self._stores:
            for project in self._list_projects(job):
                url = get_project_store(store, project)
                run = adopt(
                    self._database, self._open(url), run_id, attempt=attempt, project=project
                )
                if run is not None:
                    log.info("adopted run %s from %s", run_id, url)
                    return run
        return None

    def _list_projects(self, job: JobStatus) -> list[str]:
        """List the projects that may have a run: the one that its job names comes first.

        The job only tells where to look: the project of a run is that of the folder it lies in.
        """
        with self._database.read() as session:
            names = [project.name for project in projects.list_projects(session)]
        named = job.metadata.get("project", DEFAULT_PROJECT)
        first = [named] if is_name(named) else []
        return list(dict.fromkeys([*first, DEFAULT_PROJECT, *names]))


def _is_alive(job: JobStatus) -> bool:
    return job.state in (JobState.PENDING, JobState.RUNNING)


def _record_job_stop(session: Session, submission: str, run: Run | None, cluster: str) -> None:
    reason = "it belongs to no known run"
    if run is not None:
        reason = f"its run is {run.status.value} at attempt {run.attempt}"
    audit_log.record(
        session,
        SERVICE,
        action="stop",
        object_kind="job",
        object=submission,
        project=None if run is None else run.project,
        after={"cluster": cluster, "reason": reason},
    )


def _is_rebuilt(run: Run, attempt: int) -> bool:
    """Return whether the run was rebuilt from a store that did not show that its job is alive."""
    return run.origin == STORE_ORIGIN and run.status is Status.PLANNED and attempt >= run.attempt


def _is_superseded(run: Run, attempt: int) -> bool:
    """Return whether the run was declared lost and waits for its next attempt."""
    return run.status is Status.PLANNED and attempt == run.attempt
