"""A federation on a Ray cluster, from its driver: the server is here, the sites are actors."""

from __future__ import annotations

import os

from jobs.request import Request
from jobs.store.manifest import Manifest
from jobs.store.runs import RunStore


def run_federation(request: Request, runs: RunStore, *, attempt: int) -> Manifest | None:
    """All rounds and the commit, on the Ray that this process has joined.

    Raises InputError, TrainingFailed, StoreError.
    """
    # The server has no accelerator: it averages, and splits updates.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from jobs.cluster_run import describe_missing_resources
    from jobs.federate.ray_sites import RaySites
    from jobs.federate.rows import make_request_partition
    from jobs.federate.server import FederationServer

    partition = make_request_partition(request)
    if (missing := describe_missing_resources(request)) is not None:
        print(f"waiting for the cluster: {missing}", flush=True)
    sites = RaySites(request)
    try:
        return FederationServer(request, runs, sites, partition, attempt=attempt).run()
    finally:
        sites.close()
