"""Jobs on a cluster that no run is following: stopped where they are ours, adopted where the store
knows their run.

Only jobs that carry this service's name are touched: other services, and people with `ray job
submit`, have theirs on the same cluster.
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
    """Minds one cluster's."""

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
        """Stops or adopts what lives there and has no run. Raises ClusterUnreachable."""
        for submission, run, attempt in self._iterate_own_jobs(job_statuses):
            self._reconcile_job(submission, run, attempt)

    def get_live_attempts(self, job_statuses: Mapping[str, JobStatus]) -> dict[str, int]:
        """The runs of which a job lives there, and of which attempt it is."""
        return {run: attempt for _, run, attempt in self._iterate_own_jobs(job_statuses)}

    def _iterate_own_jobs(
        self, job_statuses: Mapping[str, JobStatus]
    ) -> Iterator[tuple[str, str, int]]:
        """This service's living jobs: the submission, its run and its attempt."""
        for submission, job in job_statuses.items():
            match = _SUBMISSION_PATTERN.fullmatch(submission)
            if match is None or job.state not in (JobState.PENDING, JobState.RUNNING):
                continue
            # Who may submit there may call a job anything: what can be no run's is none of ours.
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
                # Whose job it is nobody can say now, and unreachable is not gone.
                log.warning("job %s: its store does not answer: %s", submission, error)
                return
        if run is None:
            log.warning("job %s is of no run that is known: stopping it", submission)
            self._cluster.stop(submission)
        elif run.status in FINAL or attempt < run.attempt or _is_superseded(run, attempt):
            log.warning("job %s lives on, its run is at attempt %s", submission, run.attempt)
            self._cluster.stop(submission)

    def _find_run(self, run_id: str) -> Run | None:
        try:
            with self._database.read() as session:
                return runs.get(session, run_id)
        except UnknownItem:
            return None

    def _adopt_run(self, run_id: str, attempt: int) -> Run | None:
        """A run that the registry lost and a store remembers, as it is after a rebuild."""
        for store in self._stores:
            run = adopt(self._database, self._open(store), run_id, attempt=attempt)
            if run is not None:
                log.info("run %s was adopted from %s", run_id, store)
                return run
        return None


def _is_rebuilt(run: Run, attempt: int) -> bool:
    """Whether the run was read from a store that could not tell that its job lives."""
    return run.origin == STORE_ORIGIN and run.status is Status.PLANNED and attempt >= run.attempt


def _is_superseded(run: Run, attempt: int) -> bool:
    """Whether the run was given up for lost, and waits for its next attempt."""
    return run.status is Status.PLANNED and attempt == run.attempt
