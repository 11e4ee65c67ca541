"""Follow the active runs of a cluster: read their state, decide by the policy, and move them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jobs.errors import InputError, NotInStore, StoreError
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cluster.base import Cluster, JobState, JobStatus
from orchestrator.cluster.errors import ClusterRefused
from orchestrator.control.job_spec import JOB_MODULES, make_job, write_job_spec
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.outcome import StoredOutcome, read_outcome
from orchestrator.control.policy import Action, Decision, RunOutcome, compute_retry_wait_s, decide
from orchestrator.registry import adapters, run_flags, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LostUpdate
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.restore import UNKNOWN_CLUSTER
from orchestrator.registry.values import Attempt, Run

ALIVE_STATES = (JobState.PENDING, JobState.RUNNING)
NO_OUTCOME = StoredOutcome(RunOutcome())
JOB_ABSENT = JobStatus(JobState.ABSENT)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterRules:
    """The configured limits of a cluster's runs."""

    service: str = "slora"
    max_runs: int = 50
    max_attempts: int = 3
    modules: Mapping[str, str] = field(default_factory=lambda: JOB_MODULES)


class Follower:
    """Moves the runs of one cluster."""

    def __init__(
        self,
        database: Database,
        cluster: Cluster,
        rules: ClusterRules,
        metrics: ServiceMetrics,
        *,
        store_opener: Callable[[str], ObjectStore] = open_store,
    ) -> None:
        self._database, self._cluster, self._rules = database, cluster, rules
        self._metrics, self._open = metrics, store_opener
        self._unreachable_stores = set[str]()
        """Stores that did not answer in this pass: each is tried once, not once per run."""

    def follow(self, job_statuses: Mapping[str, JobStatus], lease: Lease) -> None:
        """Advance every active run. Raise ClusterUnreachable or DatabaseUnreachable."""
        with self._database.read() as session:
            active = run_flags.list_active_runs(session, self._cluster.name)
            attempts = {run.id: run_flags.get_newest_attempt(session, run) for run in active}
        acknowledged_runs = [run for run in active if run.submission in job_statuses]
        newly_acknowledged = [
            run for run in acknowledged_runs if not _is_acknowledged(attempts[run.id])
        ]
        if newly_acknowledged:
            with self._database.write() as session:
                run_flags.mark_acknowledged(session, newly_acknowledged)
        self._unreachable_stores.clear()
        for run in active:
            job = job_statuses.get(run.submission, JOB_ABSENT)
            acknowledged = run.submission in job_statuses or _is_acknowledged(attempts[run.id])
            self._advance_run(run, job, acknowledged=acknowledged, lease=lease)

    def submit(self, run: Run, lease: Lease) -> None:
        """Submit the newest attempt. Raise ClusterUnreachable if the result is unknown."""
        if run.store in self._unreachable_stores:
            return
        try:
            spec_path = write_job_spec(self._open(run.store), run)
        except (NotInStore, InputError) as missing:
            # The store answers and has no valid request, so no retry can succeed.
            self._fail_run(run, Reason.REFUSED, str(missing), lease)
            return
        except StoreError as error:
            # Nothing was submitted; the next pass tries again.
            log.warning("run %s: cannot write its spec: %s", run.id, error)
            self._unreachable_stores.add(run.store)
            return
        rules = self._rules
        try:
            job = make_job(run, spec_path, service=rules.service, modules=rules.modules)
            self._cluster.submit(job)
        except ClusterRefused as refusal:
            self._metrics.submissions.labels(self._cluster.name, "refused").inc()
            self._fail_run(run, Reason.OUTSIDE, str(refusal), lease)
            return
        self._metrics.submissions.labels(self._cluster.name, "accepted").inc()
        with self._database.write() as session:
            run_flags.mark_acknowledged(session, [run])

    def _fail_run(self, run: Run, reason: Reason, detail: str, lease: Lease) -> None:
        with self._database.write() as session:
            runs.move(session, run, Status.FAILED, reason=reason, detail=detail, lease=lease)

    def _advance_run(self, run: Run, job: JobStatus, *, acknowledged: bool, lease: Lease) -> None:
        is_alive = job.state in ALIVE_STATES
        if not is_alive and run.store in self._unreachable_stores:
            return
        try:
            stored = NO_OUTCOME if is_alive else read_outcome(self._open(run.store), run)
        except (StoreError, InputError) as error:
            # Without its store nobody knows how it ended; the next pass tries again.
            log.warning("run %s: cannot read its store: %s", run.id, error)
            self._unreachable_stores.add(run.store)
            return
        decision = decide(
            run,
            job,
            stored.outcome,
            acknowledged=acknowledged,
            max_attempts=self._rules.max_attempts,
        )
        try:
            self._apply_decision(run, decision, stored, lease)
        except LostUpdate:
            # A user requested a stop meanwhile; the next pass reads it again.
            log.info("run %s was changed during this pass", run.id)

    def _apply_decision(
        self, run: Run, decision: Decision, stored: StoredOutcome, lease: Lease
    ) -> None:
        if decision.action is Action.SUBMIT:
            self.submit(run, lease)
        elif decision.action is Action.END_JOB:
            self._cluster.stop(run.submission)
        elif decision.action is Action.FINISH:
            self._finish_run(run, stored, lease)
        elif decision.action is Action.MOVE:
            assert decision.target is not None
            self._move_run(run, decision, lease)

    def _move_run(self, run: Run, decision: Decision, lease: Lease) -> None:
        assert decision.target is not None
        with self._database.write() as session:
            moved = runs.move(
                session,
                run,
                decision.target,
                reason=decision.reason,
                detail=decision.detail,
                lease=lease,
            )
            if decision.target is Status.PLANNED:
                run_flags.set_not_before(session, moved, compute_retry_wait_s(run.attempt))
        if decision.target is Status.LOST:
            self._metrics.lost_attempts.labels(self._cluster.name).inc()
        log.info("run %s: %s -> %s %s", run.id, run.status, decision.target, decision.reason or "")

    def _finish_run(self, run: Run, stored: StoredOutcome, lease: Lease) -> None:
        """Move the run to publishing and done in one transaction, with the adapter's row."""
        with self._database.write() as session:
            if run.status is not Status.PUBLISHING:
                run = runs.move(session, run, Status.PUBLISHING, lease=lease)
            if stored.manifest is not None:
                adapters.put(session, run.store, stored.manifest, project=run.project)
                run_flags.set_trained_tokens(
                    session, run, _count_trained_tokens(run, stored.manifest)
                )
            if stored.pointer is not None:
                adapters.set_pointer_if_known(session, run.store, run.name, *stored.pointer)
            detail = "no new data" if stored.manifest is None else ""
            runs.move(session, run, Status.DONE, detail=detail, lease=lease)
        log.info("run %s: done %s", run.id, stored.outcome.adapter or "")


def _count_trained_tokens(run: Run, manifest: Manifest) -> int | None:
    """Return the tokens of the manifest; that of a search only counts one trial's."""
    tokens = manifest.ledger.get("tokens")
    if tokens is None:
        return None
    return int(tokens) if manifest.run == run.id else max(int(tokens), run.tokens or 0)


def _is_acknowledged(attempt: Attempt | None) -> bool:
    """Return whether the cluster ever acknowledged the job; assume so for rebuilt runs."""
    return (
        attempt is None or attempt.acknowledged_at is not None or attempt.cluster == UNKNOWN_CLUSTER
    )
