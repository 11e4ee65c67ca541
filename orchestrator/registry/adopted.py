"""One run that the registry lost and a store remembers, taken in while its job lives."""

from __future__ import annotations

from dataclasses import replace

from jobs.store.objects import ObjectStore
from orchestrator.registry import projects, restored, runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.papers import Papers, read_papers
from orchestrator.registry.request_paper import REQUEST
from orchestrator.registry.values import DEFAULT_PROJECT, Run


def adopt(database: Database, store: ObjectStore, run_id: str, *, attempt: int) -> Run | None:
    """The run as a rebuild would have it, at work; None where the store has no request for it.

    Raises StoreError.
    """
    prefix = f"runs/{run_id}/"
    parts = frozenset(key.removeprefix(prefix) for key in store.list(prefix))
    if REQUEST not in parts:
        return None
    papers = read_papers(store, run_id, parts)
    if not isinstance(papers, Papers) or papers.request is None:
        return None
    if papers.status is not Status.DONE:
        # Its journal may not have begun, or may end with what an attempt before met; its job lives.
        papers = replace(papers, status=Status.RUNNING, reason=None, detail="")
    with database.write() as session:
        projects.ensure(session, DEFAULT_PROJECT)
        restored.put_run(
            session,
            papers,
            store=store.url(""),
            project=DEFAULT_PROJECT,
            search=None,
            attempt=attempt,
            committed=False,
        )
        return runs.get(session, run_id)
