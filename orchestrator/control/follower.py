"""Follow the active runs of a cluster: read their state, decide by the policy, and move them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy.orm import Session

from jobs.errors import (
    InputError,
    NotInStore,
    StoreError,
    StoreRefused,
    StoreUnreachable,
    Untrusted,
)
from jobs.places.places import Places
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cluster.base import Cluster, JobState, JobStatus
from orchestrator.cluster.errors import ClusterRefused
from orchestrator.control.bulkheads.bulkhead import Bulkhead, make_bulkhead
from orchestrator.control.bulkheads.item_guard import MAX_FAILURES, ItemFailure
from orchestrator.control.job_spec import JOB_MODULES, NO_VARIABLES, make_job, write_job_spec
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.outcome import (
    StoredOutcome,
    read_earlier_outcome,
    read_outcome,
    read_pointer_move,
)
from orchestrator.control.policy import Action, Decision, RunOutcome, compute_retry_wait_s, decide
from orchestrator.control.projects.pointer_moves import apply_promotion, pin_current
from orchestrator.control.projects.project_places import make_places
from orchestrator.control.signing.service_trust import ServiceTrust
from orchestrator.control.signing.sign_commit import sign_commit
from orchestrator.registry import adapters, projects, run_flags, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LostUpdate, NameTaken, VersionJumped
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.restore import UNKNOWN_CLUSTER
from orchestrator.registry.tenancy import quarantine
from orchestrator.registry.tenancy.looks import LookVerdict
from orchestrator.registry.values import Attempt, Run

ALIVE_STATES = (JobState.PENDING, JobState.RUNNING)
NO_OUTCOME = StoredOutcome(RunOutcome())
JOB_ABSENT = JobStatus(JobState.ABSENT)
STORE_AWAY = (StoreRefused, StoreUnreachable)
"""Errors of a whole store. Any other is of one run, which the guard leaves alone for a while."""
NO_TRUST = ServiceTrust()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterRules:
    """The configured limits of a cluster's runs."""

    service: str = "slora"
    instance: str = ""
    """Id of the registry, which the service reads from its database."""
    max_runs: int = 50
    max_attempts: int = 3
    warm_workers: int = 0
    """Idle workers that the cluster keeps for each project."""
    modules: Mapping[str, str] = field(default_factory=lambda: JOB_MODULES)
    stores: Sequence[str] = ()
    """The service's stores: a project reads its own part of them only."""
    masks: Collection[str] | None = None
    """The installed mask strategies that jobs may load; None: all."""


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
        bulkhead: Bulkhead | None = None,
        trust: ServiceTrust = NO_TRUST,
        make_environment: Callable[[Run], Mapping[str, str]] = lambda run: NO_VARIABLES,
    ) -> None:
        self._database, self._cluster, self._rules = database, cluster, rules
        bulkhead = bulkhead or make_bulkhead(database, f"follower.{cluster.name}", metrics=metrics)
        self._guard, self._looks = bulkhead.guard, bulkhead.looks
        self._metrics, self._open, self._trust = metrics, store_opener, trust
        self._make_environment = make_environment
        self._unreachable_stores = set[str]()
        """Stores that did not answer in this pass: each is tried once, not once per run."""

    def follow(self, job_statuses: Mapping[str, JobStatus], lease: Lease) -> None:
        """Advance every active run. Raise ClusterUnreachable or DatabaseUnreachable."""
        with self._database.read() as session:
            active = run_flags.list_active_runs(session, self._cluster.name)
            quarantined = quarantine.find_reasons(session, "run")
        self._unreachable_stores.clear()
        for run in active:
            job = job_statuses.get(run.submission, JOB_ABSENT)
            if run.id in quarantined:
                step = partial(
                    self._end_run, run, job, Reason.QUARANTINED, quarantined[run.id], lease
                )
            else:
                step = partial(self._follow_run, run, job, lease)
            end = partial(self._end_failing_run, run, job, lease)
            self._guard.run("run", run.id, step, end=end)

    def submit(self, run: Run, lease: Lease) -> None:
        """Submit the newest attempt. Raise ClusterUnreachable if the result is unknown."""
        if run.store in self._unreachable_stores:
            return
        try:
            store = self._open(run.store)
            spec_path = write_job_spec(store, run)
            earlier = read_earlier_outcome(store, run)
            if run.kind == "retrain" and not earlier.outcome.is_finished:
                last_move = self._find_last_move(run)
                pin_current(store, run.name, signer=self._trust.signer, min_move=last_move)
        except (NotInStore, InputError, Untrusted) as refusal:
            # The store answers: its request is not valid, or its name has what nobody trusts.
            self._fail_run(run, Reason.REFUSED, str(refusal), lease)
            return
        except STORE_AWAY as error:
            # Nothing was submitted; the next pass tries again.
            log.warning("run %s: cannot write its spec: %s", run.id, error)
            self._unreachable_stores.add(run.store)
            return
        if earlier.outcome.is_finished:
            self._finish_run(run, earlier, lease)
            return
        try:
            environment = self._make_environment(run)
        except InputError as refusal:
            self._fail_run(run, Reason.REFUSED, str(refusal), lease)
            return
        except StoreError as error:
            # Of this project only: the store answers.
            log.warning("run %s: cannot get its credentials: %s", run.id, error)
            return
        rules = self._rules
        try:
            job = make_job(
                run,
                spec_path,
                service=rules.service,
                instance=rules.instance,
                places=self._read_places(run),
                masks=rules.masks,
                modules=rules.modules,
                environment=environment,
                warm_workers=rules.warm_workers,
            )
            self._cluster.submit(job)
        except ClusterRefused as refusal:
            self._metrics.submissions.labels(self._cluster.name, "refused").inc()
            self._fail_run(run, Reason.OUTSIDE, str(refusal), lease)
            return
        self._metrics.submissions.labels(self._cluster.name, "accepted").inc()
        with self._database.write() as session:
            run_flags.mark_acknowledged(session, [run])

    def _read_places(self, run: Run) -> Places | None:
        with self._database.read() as session:
            project = projects.find(session, run.project)
        return make_places(project, run.store, self._rules.stores)

    def _follow_run(self, run: Run, job: JobStatus, lease: Lease) -> None:
        with self._database.read() as session:
            attempt = run_flags.get_newest_attempt(session, run)
        is_known = job is not JOB_ABSENT
        if is_known and not _is_acknowledged(attempt):
            with self._database.write() as session:
                run_flags.mark_acknowledged(session, [run])
        acknowledged = is_known or _is_acknowledged(attempt)
        self._advance_run(run, job, acknowledged=acknowledged, lease=lease)

    def _end_failing_run(
        self, run: Run, job: JobStatus, lease: Lease, failure: ItemFailure
    ) -> None:
        """End an active run only after many failures in a row: its job may be training well."""
        if failure.count >= MAX_FAILURES:
            self._end_run(run, job, Reason.INTERNAL, failure.detail, lease)

    def _end_run(self, run: Run, job: JobStatus, reason: Reason, detail: str, lease: Lease) -> None:
        if job.state in ALIVE_STATES:
            self._cluster.stop(run.submission)
        self._fail_run(run, reason, detail, lease)

    def _fail_run(self, run: Run, reason: Reason, detail: str, lease: Lease) -> None:
        with self._database.write() as session:
            runs.move(session, run, Status.FAILED, reason=reason, detail=detail, lease=lease)

    def _advance_run(self, run: Run, job: JobStatus, *, acknowledged: bool, lease: Lease) -> None:
        is_alive = job.state in ALIVE_STATES
        if not is_alive and run.store in self._unreachable_stores:
            return
        try:
            stored = NO_OUTCOME if is_alive else self._read_outcome(run)
        except (*STORE_AWAY, InputError) as error:
            # Without its store nobody knows how it ended; the next pass tries again.
            log.warning("run %s: cannot read its store: %s", run.id, error)
            self._unreachable_stores.add(run.store)
            return
        if stored is None:
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

    def _read_outcome(self, run: Run) -> StoredOutcome | None:
        """Read what the job left in the store, which anybody may have written.

        Return None if another process is reading it, or if the run was quarantined just now.
        """
        with self._looks.look("run", run.id, run.project) as verdict:
            if verdict is not LookVerdict.CLEAR:
                return None
            return read_outcome(self._open(run.store), run)

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
            if decision.target not in (Status.RUNNING, Status.PUBLISHING):
                self._metrics.observe_starts(stored.starts, run.attempt)

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
        """Move the run to publishing and done, with the adapter's row, signature and pointer."""
        if stored.manifest is not None and not self._sign_version(run, stored.manifest, lease):
            return
        try:
            self._publish_run(run, stored, lease)
        except (NameTaken, VersionJumped) as refusal:
            self._fail_run(run, Reason.REFUSED, str(refusal), lease)
        except STORE_AWAY as error:
            # The pointer is moved by the next pass: a repeated move is none.
            log.warning("run %s: cannot move the pointer: %s", run.id, error)
            self._unreachable_stores.add(run.store)
        else:
            self._metrics.observe_starts(stored.starts, run.attempt)
            log.info("run %s: done %s", run.id, stored.outcome.adapter or "")

    def _find_last_move(self, run: Run) -> int:
        """Return the last move of the name's pointer that the registry has seen; 0 without any."""
        with self._database.read() as session:
            pointer = adapters.get_pointer(session, run.store, run.name)
        return 0 if pointer is None else pointer.move

    def _publish_run(self, run: Run, stored: StoredOutcome, lease: Lease) -> None:
        detail = "no new data" if stored.manifest is None else ""
        if stored.manifest is not None and stored.promotion is not None:
            # First the row: it is refused if the name is another project's.
            with self._database.write() as session:
                run = self._record_adapter(session, run, stored, lease)
            store = self._open(run.store)
            detail = apply_promotion(
                store,
                stored.manifest,
                stored.promotion,
                signer=self._trust.signer,
                min_move=self._find_last_move(run),
            )
            stored = replace(stored, pointer=read_pointer_move(store, run.name))
        with self._database.write() as session:
            run = self._record_adapter(session, run, stored, lease)
            if stored.pointer is not None:
                adapters.set_pointer_if_known(session, run.store, run.name, *stored.pointer)
            runs.move(session, run, Status.DONE, detail=detail, lease=lease)

    def _record_adapter(
        self, session: Session, run: Run, stored: StoredOutcome, lease: Lease
    ) -> Run:
        if run.status is not Status.PUBLISHING:
            run = runs.move(session, run, Status.PUBLISHING, lease=lease)
        if stored.manifest is not None:
            adapters.put(session, run.store, stored.manifest, project=run.project)
            tokens = _count_trained_tokens(run, stored.manifest)
            run_flags.set_trained_tokens(session, run, tokens)
        return run

    def _sign_version(self, run: Run, manifest: Manifest, lease: Lease) -> bool:
        """Sign the run's version where there is a key; fail the run if it is not the run's own."""
        try:
            fault = sign_commit(self._open(run.store), run, manifest, self._trust)
        except StoreError as error:
            log.warning("run %s: its version is not signed yet: %s", run.id, error)
            return False
        if fault is not None:
            self._fail_run(run, Reason.UNPUBLISHED, str(fault), lease)
        return fault is None


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
