"""Where a run's spec lies in its store, and the job that reads it there."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.errors import Fault, InputError
from jobs.federate.papers import FEDERATION
from jobs.retrain.papers import RETRAIN
from jobs.search.leave import SEARCH
from jobs.store.objects import ObjectStore
from jobs.store.runs import SPEC
from orchestrator.cluster.door import Job
from orchestrator.registry.request_paper import REQUEST, read_request
from orchestrator.registry.values import Run

PARTS: Mapping[str, str] = {
    "finetune": SPEC,
    "search": SEARCH,
    "retrain": RETRAIN,
    "federate": FEDERATION,
}
MODULES: Mapping[str, str] = {
    "finetune": "jobs.finetune",
    "search": "jobs.search",
    "retrain": "jobs.retrain",
    "federate": "jobs.federate",
}
"""What runs on a cluster for each kind: names of ours, whatever a spec says."""


def paper_key(run: str, part: str) -> str:
    """Where a run's paper lies in its store."""
    return f"runs/{run}/{part}"


def lay_out(store: ObjectStore, run: Run) -> str:
    """Put the spec where the run's job reads it, and say where.

    Raises NotFound or InputError where there is no request to read, StoreError.
    """
    found = read_request(store, paper_key(run.id, REQUEST))
    if isinstance(found, Fault):
        raise InputError([found])
    key = paper_key(run.id, PARTS[run.kind])
    store.put(key, found.text.encode())
    return store.url(key).removeprefix("file://")


def job_of(run: Run, paper: str, *, service: str, modules: Mapping[str, str] = MODULES) -> Job:
    """The job of the run's newest attempt. Of the user's words only checked names are in it."""
    words = ("--spec", paper, "--run", run.id, "--attempt", str(run.attempt))
    about = {"slora_service": service, "run": run.id, "attempt": str(run.attempt)}
    return Job(run.submission, modules[run.kind], words, about)
