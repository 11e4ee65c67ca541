"""Where a run's spec lies in its store, and the job that reads it there."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.errors import Fault, InputError
from jobs.federation.artifacts import FEDERATION_FILE
from jobs.retrain.retrain_artifacts import RETRAIN_FILE
from jobs.search.search_artifacts import SEARCH_FILE
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import SPEC, format_run_key
from orchestrator.cluster.base import Job
from orchestrator.registry.run_request import REQUEST_FILE, read_request
from orchestrator.registry.values import Run

SPEC_FILES: Mapping[str, str] = {
    "finetune": SPEC,
    "search": SEARCH_FILE,
    "retrain": RETRAIN_FILE,
    "federate": FEDERATION_FILE,
}
JOB_MODULES: Mapping[str, str] = {
    "finetune": "jobs.finetune",
    "search": "jobs.search",
    "retrain": "jobs.retrain",
    "federate": "jobs.federate",
}
"""What runs on a cluster for each kind: names of ours, whatever a spec says."""


def write_job_spec(store: ObjectStore, run: Run) -> str:
    """Put the spec where the run's job reads it, and say where.

    Raises NotFound or InputError where there is no request to read, StoreError.
    """
    request = read_request(store, format_run_key(run.id, REQUEST_FILE))
    if isinstance(request, Fault):
        raise InputError([request])
    key = format_run_key(run.id, SPEC_FILES[run.kind])
    store.put(key, request.spec_text.encode())
    return store.url(key).removeprefix("file://")


def make_job(
    run: Run, spec_path: str, *, service: str, modules: Mapping[str, str] = JOB_MODULES
) -> Job:
    """The job of the run's newest attempt. Of the user's words only checked names are in it."""
    arguments = ("--spec", spec_path, "--run", run.id, "--attempt", str(run.attempt))
    metadata = {"slora_service": service, "run": run.id, "attempt": str(run.attempt)}
    return Job(run.submission, modules[run.kind], arguments, metadata)
