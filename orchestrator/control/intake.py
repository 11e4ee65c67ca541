"""Accepting a run: its paper into the store first, then its row. Whoever is answered has a run.

The paper is written first because a registry that is lost is rebuilt from it. A paper whose row was
refused is taken away again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Annotated, Any

from pydantic import Field
from sqlalchemy.orm import Session

from jobs.errors import AlreadyExists, Fault, InputError, JobsError, StoreError
from jobs.spec.kinds import Kind
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Name
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import format_run_key, make_run_id
from orchestrator.control.resolve import ResolvedRun, resolve_run
from orchestrator.registry import idempotency, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnreachable, DuplicateKey, UnknownItem
from orchestrator.registry.group_commit import GroupCommit
from orchestrator.registry.run_request import REQUEST_FILE, RunRequest, encode_request
from orchestrator.registry.values import DEFAULT_CLUSTER, DEFAULT_PROJECT, NewRun, Run

MAX_ID_ATTEMPTS = 8
"""Ids that are tried: two submissions of a name in one second may draw the same four digits."""


class SubmitRequest(StrictModel):
    """A run that somebody asks for."""

    kind: Kind = "finetune"
    spec: dict[str, Any]
    """As in a spec's YAML, with whole paths."""
    project: Name = DEFAULT_PROJECT
    cluster: Name = DEFAULT_CLUSTER
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0


class Intake:
    """The door that runs come in by."""

    def __init__(
        self,
        database: Database,
        stores: Sequence[str],
        clusters: Sequence[str],
        *,
        store_opener: Callable[[str], ObjectStore] = open_store,
        group_commit: GroupCommit | None = None,
    ) -> None:
        self._database, self._stores, self._clusters = database, stores, clusters
        self._open, self._group_commit = store_opener, group_commit or GroupCommit(database)

    def accept(self, submission: SubmitRequest, *, key: str | None = None) -> tuple[Run, bool]:
        """The run, and whether it is new: under the same key the same run is the answer.

        Raises InputError, StoreUnreachable, DatabaseUnreachable; then nothing was accepted.
        """
        digest = sha256(json.dumps(submission.model_dump(), sort_keys=True).encode()).hexdigest()
        resolved = None
        for _ in range(MAX_ID_ATTEMPTS):
            if key is not None and (
                earlier_run := self._find_earlier_run(submission.project, key, digest)
            ):
                return earlier_run, False
            resolved = resolved or self.resolve(submission)
            run_id = make_run_id(resolved.name, datetime.now(UTC))
            try:
                write_request(self._open(resolved.store), submission, resolved, run_id)
            except AlreadyExists:
                continue
            add_run = partial(
                _add_run,
                submission=submission,
                resolved=resolved,
                run_id=run_id,
                key=key,
                digest=digest,
            )
            try:
                return self._group_commit.write(add_run), True
            except DuplicateKey:
                # The id, or the key, by the same submission that was sent twice at once.
                self._delete_request(resolved, run_id)
            except DatabaseUnreachable:
                # It may be its last word alone that was lost: then the run is there.
                if (run := self._find_run(run_id)) is not None:
                    return run, True
                self._delete_request(resolved, run_id)
                raise
            except JobsError:
                self._delete_request(resolved, run_id)
                raise
        raise DuplicateKey("run", "" if resolved is None else resolved.name)

    def resolve(self, submission: SubmitRequest) -> ResolvedRun:
        """What is asked for, nothing being written. Raises InputError."""
        if submission.cluster not in self._clusters:
            problem = f"there is no cluster {submission.cluster!a}"
            remedy = f"Use {', '.join(sorted(self._clusters))}."
            raise InputError([Fault("cluster", problem, remedy)])
        return resolve_run(submission.kind, submission.spec, self._stores)

    def _find_earlier_run(self, project: str, key: str, digest: str) -> Run | None:
        with self._database.read() as session:
            return idempotency.find_run(session, project, key, digest)

    def _find_run(self, run_id: str) -> Run | None:
        """Raises DatabaseUnreachable: nobody knows, so its paper stays."""
        try:
            with self._database.read() as session:
                return runs.get(session, run_id)
        except UnknownItem:
            return None

    def _delete_request(self, resolved: ResolvedRun, run_id: str) -> None:
        # A store that is gone by now keeps a paper that nobody asks for.
        with suppress(StoreError):
            self._open(resolved.store).delete(format_run_key(run_id, REQUEST_FILE))


def _add_run(
    session: Session,
    submission: SubmitRequest,
    resolved: ResolvedRun,
    run_id: str,
    key: str | None,
    digest: str,
) -> Run:
    """The run's row, and the key's. Raises Taken."""
    run = runs.add(session, make_new_run(submission, resolved, run_id))
    if key is not None:
        idempotency.record_run(session, submission.project, key, digest, run)
    return run


def write_request(
    store: ObjectStore, submission: SubmitRequest, resolved: ResolvedRun, run_id: str
) -> None:
    """What was asked, into the store. Raises AlreadyThere, StoreError."""
    request = RunRequest(
        kind=submission.kind,
        name=resolved.name,
        project=submission.project,
        cluster=submission.cluster,
        priority=submission.priority,
        workers=resolved.workers,
        tokens=resolved.tokens,
        spec_text=resolved.spec_text,
    )
    store.put(format_run_key(run_id, REQUEST_FILE), encode_request(request), create_only=True)


def make_new_run(submission: SubmitRequest, resolved: ResolvedRun, run_id: str) -> NewRun:
    """The row of a run whose paper is written."""
    return NewRun(
        id=run_id,
        name=resolved.name,
        store=resolved.store,
        project=submission.project,
        kind=submission.kind,
        spec_sha256=resolved.digest,
        workers=resolved.workers,
        priority=submission.priority,
        cluster=submission.cluster,
        tokens=resolved.tokens,
    )
