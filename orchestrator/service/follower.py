"""A cluster's runs at work, followed: each is looked at, judged by the policy, and moved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jobs.errors import InputError, NotFound, StoreError
from jobs.store.manifest import Manifest
from jobs.store.objects import ObjectStore, open_store
from orchestrator.cluster.door import Cluster, Seen, Sight
from orchestrator.cluster.errors import ClusterRefused
from orchestrator.registry import adapters, marks, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LostUpdate
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.restored import UNKNOWN_CLUSTER
from orchestrator.registry.values import Attempt, Run
from orchestrator.service.evidence import Found, found_of
from orchestrator.service.observer import Observer
from orchestrator.service.papers import MODULES, job_of, lay_out
from orchestrator.service.policy import Act, Next, Told, decide, wait_s

ALIVE = (Seen.PENDING, Seen.RUNNING)
NOTHING = Found(Told())
GONE = Sight(Seen.ABSENT)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """What the configuration says of one cluster's runs."""

    service: str = "slora"
    max_runs: int = 50
    max_attempts: int = 3
    modules: Mapping[str, str] = field(default_factory=lambda: MODULES)


class Follower:
    """Moves the runs of one cluster by what is seen of them."""

    def __init__(
        self,
        database: Database,
        cluster: Cluster,
        rules: Rules,
        observer: Observer,
        *,
        opened: Callable[[str], ObjectStore] = open_store,
    ) -> None:
        self._database, self._cluster, self._rules = database, cluster, rules
        self._observer, self._open = observer, opened
        self._away = set[str]()
        """Stores that did not answer in this pass: each is waited for once, not for every run."""

    def follow(self, sights: Mapping[str, Sight], lease: Lease) -> None:
        """One step for every run at work. Raises ClusterUnreachable, DatabaseUnreachable."""
        with self._database.read() as session:
            found = marks.at_work(session, self._cluster.name)
            attempts = {run.id: marks.newest_attempt(session, run) for run in found}
        known = [run for run in found if run.submission in sights]
        unseen = [run for run in known if not _acknowledged(attempts[run.id])]
        if unseen:
            with self._database.write() as session:
                marks.seen(session, unseen)
        self._away.clear()
        for run in found:
            sight = sights.get(run.submission, GONE)
            acknowledged = run.submission in sights or _acknowledged(attempts[run.id])
            self._step(run, sight, acknowledged=acknowledged, lease=lease)

    def submit(self, run: Run, lease: Lease) -> None:
        """Hand the newest attempt to the cluster. Raises ClusterUnreachable: nothing is known."""
        if run.store in self._away:
            return
        try:
            paper = lay_out(self._open(run.store), run)
        except (NotFound, InputError) as gone:
            # The store answers: there is nothing that could be submitted, now or later.
            self._fail(run, Reason.REFUSED, str(gone), lease)
            return
        except StoreError as error:
            # Nothing was submitted: the next look finds that, and tries again.
            log.warning("run %s: its spec can't be laid out: %s", run.id, error)
            self._away.add(run.store)
            return
        rules = self._rules
        try:
            self._cluster.submit(job_of(run, paper, service=rules.service, modules=rules.modules))
        except ClusterRefused as refused:
            self._observer.submissions.labels(self._cluster.name, "refused").inc()
            self._fail(run, Reason.OUTSIDE, str(refused), lease)
            return
        self._observer.submissions.labels(self._cluster.name, "accepted").inc()
        with self._database.write() as session:
            marks.seen(session, [run])

    def _fail(self, run: Run, reason: Reason, detail: str, lease: Lease) -> None:
        with self._database.write() as session:
            runs.move(session, run, Status.FAILED, reason=reason, detail=detail, lease=lease)

    def _step(self, run: Run, sight: Sight, *, acknowledged: bool, lease: Lease) -> None:
        if sight.seen not in ALIVE and run.store in self._away:
            return
        try:
            found = NOTHING if sight.seen in ALIVE else found_of(self._open(run.store), run)
        except (StoreError, InputError) as error:
            # Without its store nothing is known of how it ended: the next look may tell.
            log.warning("run %s: its store does not answer: %s", run.id, error)
            self._away.add(run.store)
            return
        after = decide(
            run,
            sight,
            found.told,
            acknowledged=acknowledged,
            max_attempts=self._rules.max_attempts,
        )
        try:
            self._act(run, after, found, lease)
        except LostUpdate:
            # Somebody asked for it to be stopped meanwhile: the next look sees that.
            log.info("run %s changed while it was looked at", run.id)

    def _act(self, run: Run, after: Next, found: Found, lease: Lease) -> None:
        if after.act is Act.SUBMIT:
            self.submit(run, lease)
        elif after.act is Act.END_JOB:
            self._cluster.stop(run.submission)
        elif after.act is Act.FINISH:
            self._finish(run, found, lease)
        elif after.act is Act.MOVE:
            assert after.to is not None
            self._move(run, after, lease)

    def _move(self, run: Run, after: Next, lease: Lease) -> None:
        assert after.to is not None
        with self._database.write() as session:
            moved = runs.move(
                session, run, after.to, reason=after.reason, detail=after.detail, lease=lease
            )
            if after.to is Status.PLANNED:
                marks.not_before(session, moved, wait_s(run.attempt))
        if after.to is Status.LOST:
            self._observer.lost.labels(self._cluster.name).inc()
        log.info("run %s: %s -> %s %s", run.id, run.status, after.to, after.reason or "")

    def _finish(self, run: Run, found: Found, lease: Lease) -> None:
        """Publishing and done in one transaction, with the adapter's row."""
        with self._database.write() as session:
            if run.status is not Status.PUBLISHING:
                run = runs.move(session, run, Status.PUBLISHING, lease=lease)
            if found.manifest is not None:
                adapters.put(session, run.store, found.manifest, project=run.project)
                marks.trained(session, run, _trained(run, found.manifest))
            if found.pointer is not None:
                adapters.point_if_there(session, run.store, run.name, *found.pointer)
            detail = "nothing new to learn from" if found.manifest is None else ""
            runs.move(session, run, Status.DONE, detail=detail, lease=lease)
        log.info("run %s: done %s", run.id, found.told.adapter or "")


def _trained(run: Run, manifest: Manifest) -> int | None:
    """The tokens that are known to be spent; of a search its manifest tells one trial's alone."""
    spent = manifest.ledger.get("tokens")
    if spent is None:
        return None
    return int(spent) if manifest.run == run.id else max(int(spent), run.tokens or 0)


def _acknowledged(attempt: Attempt | None) -> bool:
    """Whether a cluster ever said that it has the job; of a rebuilt one it has to be assumed."""
    return attempt is None or attempt.seen_at is not None or attempt.cluster == UNKNOWN_CLUSTER
