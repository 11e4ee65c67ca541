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

from jobs.errors import AlreadyThere, Fault, InputError, JobsError, StoreError
from jobs.spec import Frozen
from jobs.store.manifest import Name
from jobs.store.objects import ObjectStore, open_store
from jobs.store.runs import new_run_id
from orchestrator.registry import requests, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnreachable, Taken, Unknown
from orchestrator.registry.request_paper import REQUEST, RequestPaper, request_bytes
from orchestrator.registry.together import Together
from orchestrator.registry.values import DEFAULT_CLUSTER, DEFAULT_PROJECT, Kind, NewRun, Run
from orchestrator.service.asked import Asked, asked_for
from orchestrator.service.papers import paper_key

ROUNDS = 8
"""Ids that are tried: two submissions of a name in one second may draw the same four digits."""


class Submission(Frozen):
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
        opened: Callable[[str], ObjectStore] = open_store,
        together: Together | None = None,
    ) -> None:
        self._database, self._stores, self._clusters = database, stores, clusters
        self._open, self._together = opened, together or Together(database)

    def accept(self, asked: Submission, *, key: str | None = None) -> tuple[Run, bool]:
        """The run, and whether it is new: under the same key the same run is the answer.

        Raises InputError, StoreUnreachable, DatabaseUnreachable; then nothing was accepted.
        """
        digest = sha256(json.dumps(asked.model_dump(), sort_keys=True).encode()).hexdigest()
        found = None
        for _ in range(ROUNDS):
            if key is not None and (before := self._before(asked.project, key, digest)):
                return before, False
            found = found or self.check(asked)
            run_id = new_run_id(found.name, datetime.now(UTC))
            try:
                write_paper(self._open(found.store), asked, found, run_id)
            except AlreadyThere:
                continue
            row = partial(_added, asked=asked, found=found, run_id=run_id, key=key, digest=digest)
            try:
                return self._together.write(row), True
            except Taken:
                # The id, or the key, by the same submission that was sent twice at once.
                self._take_back(found, run_id)
            except DatabaseUnreachable:
                # It may be its last word alone that was lost: then the run is there.
                if (run := self._written(run_id)) is not None:
                    return run, True
                self._take_back(found, run_id)
                raise
            except JobsError:
                self._take_back(found, run_id)
                raise
        raise Taken("run", "" if found is None else found.name)

    def check(self, asked: Submission) -> Asked:
        """What is asked for, nothing being written. Raises InputError."""
        if asked.cluster not in self._clusters:
            problem = f"there is no cluster {asked.cluster!a}"
            remedy = f"Use {', '.join(sorted(self._clusters))}."
            raise InputError([Fault("cluster", problem, remedy)])
        return asked_for(asked.kind, asked.spec, self._stores)

    def _before(self, project: str, key: str, digest: str) -> Run | None:
        with self._database.read() as session:
            return requests.answered(session, project, key, digest)

    def _written(self, run_id: str) -> Run | None:
        """Raises DatabaseUnreachable: nobody knows, so its paper stays."""
        try:
            with self._database.read() as session:
                return runs.get(session, run_id)
        except Unknown:
            return None

    def _take_back(self, found: Asked, run_id: str) -> None:
        # A store that is gone by now keeps a paper that nobody asks for.
        with suppress(StoreError):
            self._open(found.store).delete(paper_key(run_id, REQUEST))


def _added(
    session: Session, asked: Submission, found: Asked, run_id: str, key: str | None, digest: str
) -> Run:
    """The run's row, and the key's. Raises Taken."""
    run = runs.add(session, new_run(asked, found, run_id))
    if key is not None:
        requests.answer(session, asked.project, key, digest, run)
    return run


def write_paper(store: ObjectStore, asked: Submission, found: Asked, run_id: str) -> None:
    """What was asked, into the store. Raises AlreadyThere, StoreError."""
    paper = RequestPaper(
        kind=asked.kind,
        name=found.name,
        project=asked.project,
        cluster=asked.cluster,
        priority=asked.priority,
        workers=found.workers,
        tokens=found.tokens,
        text=found.text,
    )
    store.put(paper_key(run_id, REQUEST), request_bytes(paper), create_only=True)


def new_run(asked: Submission, found: Asked, run_id: str) -> NewRun:
    """The row of a run whose paper is written."""
    return NewRun(
        id=run_id,
        name=found.name,
        store=found.store,
        project=asked.project,
        kind=asked.kind,
        spec_sha256=found.digest,
        workers=found.workers,
        priority=asked.priority,
        cluster=asked.cluster,
        tokens=found.tokens,
    )
