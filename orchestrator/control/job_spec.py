"""Write the spec of a run where its job reads it, and describe the job."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.errors import Fault, InputError
from jobs.spec.kinds import KINDS
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import format_run_key
from orchestrator.cluster.base import Job
from orchestrator.registry.run_request import RunRequest, get_request_key, read_request
from orchestrator.registry.values import Run

SPEC_FILES: Mapping[str, str] = {kind.name: kind.spec_file for kind in KINDS.values()}
JOB_MODULES: Mapping[str, str] = {kind.name: kind.module for kind in KINDS.values()}
"""The module that runs each kind: fixed names, whatever a spec contains."""


def load_request(store: ObjectStore, run: Run) -> RunRequest:
    """Read the request that intake validated. Its digest is the one in the run's row.

    Raise NotInStore, InputError or StoreError.
    """
    request = read_request(store, run.id)
    if request.spec_sha256 != run.spec_sha256:
        problem = "its spec is not the one that was submitted (another digest)"
        raise InputError([Fault(get_request_key(run.id), problem, "Submit the run again.")])
    return request


def write_job_spec(store: ObjectStore, run: Run) -> str:
    """Write the spec where the run's job reads it, and return its path.

    Raise NotInStore, InputError or StoreError.
    """
    request = load_request(store, run)
    key = format_run_key(run.id, SPEC_FILES[run.kind])
    store.put(key, request.spec_text.encode())
    return store.url(key).removeprefix("file://")


def make_job(
    run: Run, spec_path: str, *, service: str, modules: Mapping[str, str] = JOB_MODULES
) -> Job:
    """Make the job of the run's newest attempt; of the user's text it holds only checked names."""
    arguments = ("--spec", spec_path, "--run", run.id, "--attempt", str(run.attempt))
    metadata = {"slora_service": service, "run": run.id, "attempt": str(run.attempt)}
    return Job(run.submission, modules[run.kind], arguments, metadata)
