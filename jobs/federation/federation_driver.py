"""Run a federation on a Ray cluster from its driver: the server runs here, the sites are actors."""

from __future__ import annotations

import os

from jobs.store.adapters.manifest import Manifest
from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.phases import PhaseStart
from jobs.train.request import FederationRequest, HooksFactory


def run_federation(
    request: FederationRequest,
    runs: RunStore,
    *,
    attempt: int,
    make_hooks: HooksFactory | None = None,
    start: PhaseStart | None = None,
) -> Manifest | None:
    """Run all rounds and commit, on the Ray cluster that this process is connected to.

    Raise InputError, TrainingFailed or StoreError.
    """
    # The server needs no accelerator: it averages and splits updates.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from jobs.federation.partition_file import read_partition
    from jobs.federation.server import make_federation
    from jobs.federation.sites.ray_sites import RaySites
    from jobs.train.driver import describe_missing_resources

    partition = read_partition(runs, request.partition)
    if (missing := describe_missing_resources(request)) is not None:
        print(f"waiting for the cluster: {missing}", flush=True)
    sites = RaySites(request)
    try:
        hooks = make_hooks() if make_hooks else None
        loop = make_federation(
            request, runs, sites, partition, attempt=attempt, hooks=hooks, start=start
        )
        return loop.run()
    finally:
        sites.close()
