"""Accept runs: write the request to the store first, then its row. An answer means a run exists.

The request comes first because a lost registry is rebuilt from it. The request of a row that was
refused is deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from sqlalchemy.orm import Session

from jobs.errors import AlreadyExists, Fault, InputError, JobsError, StoreError
from jobs.places.places import Places
from jobs.spec.size_limits import check_size
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import make_run_id
from orchestrator.control.projects.project_places import make_places
from orchestrator.control.resolve import SubmitRequest, resolve_run
from orchestrator.registry import idempotency, projects, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import (
    DatabaseUnreachable,
    DuplicateKey,
    QuotaExceeded,
    UnknownItem,
)
from orchestrator.registry.run_request import RunRequest, get_request_key, write_request
from orchestrator.registry.tenancy import adapter_names, audit_log, quotas
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor
from orchestrator.registry.tenancy.project_store import get_project_store
from orchestrator.registry.values import Project, Run, is_name

NAME_FAULT = ("it is in use in this store", "Use another name.")
"""Not whose it is: that would tell a project what another one does."""
MAX_ID_ATTEMPTS = 8
"""Ids to try: two submissions of a name in one second can draw the same four digits."""


class Intake:
    """Validates and accepts submissions."""

    def __init__(
        self,
        database: Database,
        stores: Sequence[str],
        clusters: Sequence[str],
        *,
        masks: Collection[str] = (),
        instance: str | None = None,
        store_opener: Callable[[str], ObjectStore] = open_store,
        find_store_fault: Callable[[str, str], Fault | None] = lambda project, store: None,
    ) -> None:
        self._database, self._stores, self._clusters = database, stores, clusters
        self._masks, self._open, self._find_store_fault = masks, store_opener, find_store_fault
        self._instance = instance
        self._full_projects = set[str]()
        """Projects whose last submission exceeded a quota."""

    def accept(
        self, submission: SubmitRequest, *, key: str | None = None, actor: Actor = SERVICE
    ) -> tuple[Run, bool]:
        """Return the run and whether it is new; a repeated key returns its earlier run.

        Raise InputError, QuotaExceeded, StoreUnreachable or DatabaseUnreachable if nothing was
        accepted.
        """
        check_size(submission.spec)
        digest = "" if key is None else _digest_submission(submission)
        request = None
        for _ in range(MAX_ID_ATTEMPTS):
            if earlier_run := self._find_earlier_run(submission, key, digest):
                return earlier_run, False
            request = request or self.resolve(submission)
            run_id = make_run_id(request.name, datetime.now(UTC))
            try:
                write_request(self._open(request.store), run_id, request)
            except AlreadyExists:
                continue
            try:
                return self._add_run(run_id, request, key, digest, actor), True
            except DuplicateKey:
                # Of the id, or of the key: the same submission was sent twice at once.
                self._delete_request(request, run_id)
            except DatabaseUnreachable:
                # Perhaps only the reply to the commit was lost, and the run exists.
                if (run := self._find_run(run_id)) is not None:
                    return run, True
                self._delete_request(request, run_id)
                raise
            except JobsError as error:
                if isinstance(error, QuotaExceeded):
                    self._full_projects.add(request.project)
                self._delete_request(request, run_id)
                raise
        raise DuplicateKey("run", "" if request is None else request.name)

    def resolve(self, submission: SubmitRequest) -> RunRequest:
        """Validate a submission without writing anything. Raise InputError with all faults.

        Raise DatabaseUnreachable if nobody can tell what the project may read.
        """
        project, taken = self._read_project(submission)
        request = resolve_run(
            submission,
            self._stores,
            self._clusters,
            find_places=lambda store: make_places(project, store, self._stores),
            masks=self._masks,
        )
        if request.store in taken:
            raise InputError([Fault("name", *NAME_FAULT)])
        if (fault := self._find_store_fault(request.project, request.store)) is not None:
            raise InputError([fault])
        return request.model_copy(update={"instance": self._instance})

    def find_places(self, project: str, store: str) -> Places | None:
        """Return what the runs of a project may read now; None if nothing is restricted."""
        with self._database.read() as session:
            return make_places(projects.find(session, project), store, self._stores)

    def _read_project(self, submission: SubmitRequest) -> tuple[Project, set[str]]:
        """Read the project, and the stores in which another one owns the adapter's name."""
        name = submission.spec.get("name")
        stores = [get_project_store(store, submission.project) for store in self._stores]
        with self._database.read() as session:
            project = projects.find(session, submission.project)
            if not isinstance(name, str) or not is_name(name):
                return project, set()
            return project, adapter_names.find_taken(session, stores, name, project.name)

    def _add_run(
        self, run_id: str, request: RunRequest, key: str | None, digest: str, actor: Actor
    ) -> Run:
        with self._database.write() as session:
            run = runs.add(session, run_id, request, by=actor)
            record_submission(session, actor, run)
            if key is not None:
                idempotency.record_run(session, request.project, key, digest, run)
            return run

    def _find_earlier_run(
        self, submission: SubmitRequest, key: str | None, digest: str
    ) -> Run | None:
        """Return the run of the key, if there is one. Raise QuotaExceeded for a full project.

        A project that was refused is checked here, before anything of it is written.
        """
        project = submission.project
        if key is None and project not in self._full_projects:
            return None
        with self._database.read() as session:
            run = None if key is None else idempotency.find_run(session, project, key, digest)
            if run is None and project in self._full_projects:
                quotas.check_early(session, project, submission.priority)
                self._full_projects.discard(project)
            return run

    def _find_run(self, run_id: str) -> Run | None:
        """Raise DatabaseUnreachable if nobody can tell; the request stays then."""
        try:
            with self._database.read() as session:
                return runs.get(session, run_id)
        except UnknownItem:
            return None

    def _delete_request(self, request: RunRequest, run_id: str) -> None:
        # If the store fails now, it keeps a request that nobody accepted.
        with suppress(StoreError):
            self._open(request.store).delete(get_request_key(run_id))


def record_submission(session: Session, actor: Actor, run: Run, **context: Any) -> None:
    """Record in the audit log that a run was submitted; `context` tells what caused it."""
    names = ("kind", "name", "cluster", "priority", "workers", "store", "spec_sha256")
    audit_log.record(
        session,
        actor,
        action="submit",
        object_kind="run",
        object=run.id,
        project=run.project,
        after={**{name: getattr(run, name) for name in names}, **context},
    )


def record_stop(session: Session, actor: Actor, run: Run, stopping: Run, **context: Any) -> None:
    """Record in the audit log that a run was asked to stop, unless that changed nothing."""
    if stopping.revision != run.revision:
        audit_log.record(
            session,
            actor,
            action="stop",
            object_kind="run",
            object=run.id,
            project=run.project,
            before={"status": run.status.value},
            after={"stop": stopping.stop, **context},
        )


def _digest_submission(submission: SubmitRequest) -> str:
    try:
        return sha256(json.dumps(submission.model_dump(), sort_keys=True).encode()).hexdigest()
    except (ValueError, TypeError) as error:
        problem = f"it is no JSON ({type(error).__name__})"
        raise InputError(
            [Fault("spec", problem, "Use shorter numbers, and text for keys.")]
        ) from None
