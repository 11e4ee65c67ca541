"""A cluster's runs at work, followed: each is looked at, judged by the policy, and moved."""

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
    """What the configuration says of one cluster's runs."""

    service: str = "slora"
    max_runs: int = 50
    max_attempts: int = 3
    modules: Mapping[str, str] = field(default_factory=lambda: JOB_MODULES)


class Follower:
    """Moves the runs of one cluster by what is seen of them."""

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
        """Stores that did not answer in this pass: each is waited for once, not for every run."""

    def follow(self, job_statuses: Mapping[str, JobStatus], lease: Lease) -> None:
        """One step for every run at work. Raises ClusterUnreachable, DatabaseUnreachable."""
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
        """Hand the newest attempt to the cluster. Raises ClusterUnreachable: nothing is known."""
        if run.store in self._unreachable_stores:
            return
        try:
            spec_path = write_job_spec(self._open(run.store), run)
        except (NotInStore, InputError) as missing:
            # The store answers: there is nothing that could be submitted, now or later.
            self._fail_run(run, Reason.REFUSED, str(missing), lease)
            return
        except StoreError as error:
            # Nothing was submitted: the next look finds that, and tries again.
            log.warning("run %s: its spec can't be laid out: %s", run.id, error)
            self._unreachable_stores.add(run.store)
            return
        rules = self._rules
        try:
            self._cluster.submit(
                make_job(run, spec_path, service=rules.service, modules=rules.modules)
            )
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
        if job.state not in ALIVE_STATES and run.store in self._unreachable_stores:
            return
        try:
            stored = (
                NO_OUTCOME
                if job.state in ALIVE_STATES
                else read_outcome(self._open(run.store), run)
            )
        except (StoreError, InputError) as error:
            # Without its store nothing is known of how it ended: the next look may tell.
            log.warning("run %s: its store does not answer: %s", run.id, error)
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
            # Somebody asked for it to be stopped meanwhile: the next look sees that.
            log.info("run %s changed while it was looked at", run.id)

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
        """Publishing and done in one transaction, with the adapter's row."""
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
            detail = "nothing new to learn from" if stored.manifest is None else ""
            runs.move(session, run, Status.DONE, detail=detail, lease=lease)
        log.info("run %s: done %s", run.id, stored.outcome.adapter or "")


def _count_trained_tokens(run: Run, manifest: Manifest) -> int | None:
    """The tokens that are known to be spent; of a search its manifest tells one trial's alone."""
    tokens = manifest.ledger.get("tokens")
    if tokens is None:
        return None
    return int(tokens) if manifest.run == run.id else max(int(tokens), run.tokens or 0)


def _is_acknowledged(attempt: Attempt | None) -> bool:
    """Whether a cluster ever said that it has the job; of a rebuilt one it has to be assumed."""
    return (
        attempt is None or attempt.acknowledged_at is not None or attempt.cluster == UNKNOWN_CLUSTER
    )
