"""Where a run's spec lies in its store, and the job that reads it there."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.errors import Fault, InputError
from jobs.spec.kinds import KINDS
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import format_run_key
from orchestrator.cluster.base import Job
from orchestrator.registry.run_request import REQUEST_FILE, read_request
from orchestrator.registry.values import Run

SPEC_FILES: Mapping[str, str] = {kind.name: kind.spec_file for kind in KINDS.values()}
JOB_MODULES: Mapping[str, str] = {kind.name: kind.module for kind in KINDS.values()}
"""The jobs of the cluster by kind: fixed names, whatever a spec says."""


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
