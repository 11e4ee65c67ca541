"""Write the spec of a run where its job reads it, and describe the job."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from jobs.errors import Fault, InputError
from jobs.places.boundary import make_environment
from jobs.places.places import Places
from jobs.spec.kinds import KINDS
from jobs.spec.run_arguments import LEAVE_POINTER, SUBMITTED
from jobs.spec.strategies import make_mask_environment
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import format_run_key
from jobs.store.trust.trust_policy import make_trust_environment
from jobs.train.pool.pool_identity import ATTEMPT_PREFIXES, SECRET_NAMES, WARM_WORKERS
from orchestrator.cluster.base import Job
from orchestrator.registry.run_request import RunRequest, get_request_key, read_request
from orchestrator.registry.values import Run

SPEC_FILES: Mapping[str, str] = {kind.name: kind.spec_file for kind in KINDS.values()}
JOB_MODULES: Mapping[str, str] = {kind.name: kind.module for kind in KINDS.values()}
"""The module that runs each kind: fixed names, whatever a spec contains."""
NO_VARIABLES: Mapping[str, str] = {}
SERVICE_KEY, INSTANCE_KEY = "slora_service", "slora_instance"
"""Metadata of a job: the name of its service, and the id of that service's registry."""


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
    run: Run,
    spec_path: str,
    *,
    service: str,
    instance: str,
    places: Places | None = None,
    masks: Collection[str] | None = None,
    modules: Mapping[str, str] = JOB_MODULES,
    environment: Mapping[str, str] = NO_VARIABLES,
    warm_workers: int = 0,
) -> Job:
    """Make the job of the run's newest attempt; of the user's text it holds only checked names.

    It reads nothing outside `places`, loads no installed mask strategy but `masks`, leaves the
    pointer of its adapter to the service, and keeps `warm_workers` for its project's next run.
    """
    # A later attempt waits from the moment it was begun, not from the run's submission.
    submitted = run.created_at if run.attempt <= 1 else run.updated_at
    arguments = (
        *("--spec", spec_path),
        *("--run", run.id),
        *("--attempt", str(run.attempt)),
        LEAVE_POINTER,
        *(SUBMITTED, f"{submitted:.3f}"),
    )
    metadata = {
        SERVICE_KEY: service,
        INSTANCE_KEY: instance,
        "run": run.id,
        "attempt": str(run.attempt),
        "project": run.project,
    }
    environment = {
        **environment,
        **make_warm_environment(warm_workers, environment),
        **make_trust_environment(),
        **make_environment(places),
        **make_mask_environment(masks),
    }
    return Job(run.submission, modules[run.kind], arguments, metadata, environment)


def make_warm_environment(warm_workers: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which a job uses warm workers; `environment` is its project's.

    They name the project's own variables, so that no idle process has their values.
    """
    if not warm_workers:
        return {}
    names = sorted(name for name in environment if not name.startswith(ATTEMPT_PREFIXES))
    named = {SECRET_NAMES: ",".join(names)} if names else {}
    return {WARM_WORKERS: str(warm_workers), **named}
