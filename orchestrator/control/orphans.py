"""Find jobs on a cluster that belong to no active run: adopt them if the store has their run, else
stop them.

Only jobs with this service's name are handled: other services, and users of `ray job submit`, have
jobs on the same cluster.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from jobs.errors import StoreError
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cluster.base import Cluster, JobState, JobStatus
from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.lifecycle import FINAL, Status
from orchestrator.registry.rebuild.adopt import adopt
from orchestrator.registry.rebuild.restore import STORE_ORIGIN
from orchestrator.registry.rebuild.untrusted import is_run_id
from orchestrator.registry.values import Run

_SUBMISSION_PATTERN = re.compile(r"(?P<run>.+)-a(?P<attempt>[1-9][0-9]{0,8})")

log = logging.getLogger(__name__)


class Orphans:
    """Handles the orphaned jobs of one cluster."""

    def __init__(
        self,
        database: Database,
        cluster: Cluster,
        *,
        service: str,
        stores: Sequence[str],
        store_opener: Callable[[str], ObjectStore] = open_store,
    ) -> None:
        self._database, self._cluster = database, cluster
        self._service, self._stores, self._open = service, stores, store_opener

    def reconcile_orphans(self, job_statuses: Mapping[str, JobStatus]) -> None:
        """Adopt or stop the live jobs without a run. Raise ClusterUnreachable."""
        for submission, run, attempt in self._iterate_own_jobs(job_statuses):
            self._reconcile_job(submission, run, attempt)

    def get_live_attempts(self, job_statuses: Mapping[str, JobStatus]) -> dict[str, int]:
        """Return the attempt of each run that has a live job."""
        return {run: attempt for _, run, attempt in self._iterate_own_jobs(job_statuses)}

    def _iterate_own_jobs(
        self, job_statuses: Mapping[str, JobStatus]
    ) -> Iterator[tuple[str, str, int]]:
        """Yield the submission, run and attempt of each live job of this service."""
        for submission, job in job_statuses.items():
            match = _SUBMISSION_PATTERN.fullmatch(submission)
            if match is None or job.state not in (JobState.PENDING, JobState.RUNNING):
                continue
            # Anybody may submit a job with any name; one that is no run id is not of this service.
            if not is_run_id(match["run"]):
                continue
            if job.metadata.get("slora_service") == self._service:
                yield submission, match["run"], int(match["attempt"])

    def _reconcile_job(self, submission: str, run_id: str, attempt: int) -> None:
        run = self._find_run(run_id)
        if run is None or _is_rebuilt(run, attempt):
            try:
                run = self._adopt_run(run_id, attempt)
            except StoreError as error:
                # Nobody can tell whose job it is now, and unreachable is not dead.
                log.warning("job %s: cannot read its store: %s", submission, error)
                return
        if run is None:
            log.warning("job %s belongs to no known run: stopping it", submission)
            self._cluster.stop(submission)
        elif run.status in FINAL or attempt < run.attempt or _is_superseded(run, attempt):
            log.warning(
                "job %s is outdated, its run is at attempt %s: stopping it", submission, run.attempt
            )
            self._cluster.stop(submission)

    def _find_run(self, run_id: str) -> Run | None:
        try:
            with self._database.read() as session:
                return runs.get(session, run_id)
        except UnknownItem:
            return None

    def _adopt_run(self, run_id: str, attempt: int) -> Run | None:
        """Restore a run that the registry lost from the store that has it."""
        for store in self._stores:
            run = adopt(self._database, self._open(store), run_id, attempt=attempt)
            if run is not None:
                log.info("adopted run %s from %s", run_id, store)
                return run
        return None


def _is_rebuilt(run: Run, attempt: int) -> bool:
    """Return whether the run was rebuilt from a store that did not show that its job is alive."""
    return run.origin == STORE_ORIGIN and run.status is Status.PLANNED and attempt >= run.attempt


def _is_superseded(run: Run, attempt: int) -> bool:
    """Return whether the run was declared lost and waits for its next attempt."""
    return run.status is Status.PLANNED and attempt == run.attempt
