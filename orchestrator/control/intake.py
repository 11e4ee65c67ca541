"""Accept runs: write the request to the store first, then its row. An answer means a run exists.

The request comes first because a lost registry is rebuilt from it. The request of a row that was
refused is deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256

from jobs.errors import AlreadyExists, JobsError, StoreError
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import make_run_id
from orchestrator.control.resolve import SubmitRequest, resolve_run
from orchestrator.registry import idempotency, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnreachable, DuplicateKey, UnknownItem
from orchestrator.registry.run_request import RunRequest, get_request_key, write_request
from orchestrator.registry.values import Run

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
        store_opener: Callable[[str], ObjectStore] = open_store,
    ) -> None:
        self._database, self._stores, self._clusters = database, stores, clusters
        self._open = store_opener

    def accept(self, submission: SubmitRequest, *, key: str | None = None) -> tuple[Run, bool]:
        """Return the run and whether it is new; a repeated key returns its earlier run.

        Raise InputError, StoreUnreachable or DatabaseUnreachable if nothing was accepted.
        """
        digest = sha256(json.dumps(submission.model_dump(), sort_keys=True).encode()).hexdigest()
        request = None
        for _ in range(MAX_ID_ATTEMPTS):
            if key is not None and (
                earlier_run := self._find_earlier_run(submission.project, key, digest)
            ):
                return earlier_run, False
            request = request or self.resolve(submission)
            run_id = make_run_id(request.name, datetime.now(UTC))
            try:
                write_request(self._open(request.store), run_id, request)
            except AlreadyExists:
                continue
            try:
                return self._add_run(run_id, request, key, digest), True
            except DuplicateKey:
                # Of the id, or of the key: the same submission was sent twice at once.
                self._delete_request(request, run_id)
            except DatabaseUnreachable:
                # Perhaps only the reply to the commit was lost, and the run exists.
                if (run := self._find_run(run_id)) is not None:
                    return run, True
                self._delete_request(request, run_id)
                raise
            except JobsError:
                self._delete_request(request, run_id)
                raise
        raise DuplicateKey("run", "" if request is None else request.name)

    def resolve(self, submission: SubmitRequest) -> RunRequest:
        """Validate a submission without writing anything. Raise InputError with all faults."""
        return resolve_run(submission, self._stores, self._clusters)

    def _add_run(self, run_id: str, request: RunRequest, key: str | None, digest: str) -> Run:
        with self._database.write() as session:
            run = runs.add(session, run_id, request)
            if key is not None:
                idempotency.record_run(session, request.project, key, digest, run)
            return run

    def _find_earlier_run(self, project: str, key: str, digest: str) -> Run | None:
        with self._database.read() as session:
            return idempotency.find_run(session, project, key, digest)

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
