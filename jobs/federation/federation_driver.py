"""A federation on a Ray cluster, from its driver: the server is here, the sites are actors."""

from __future__ import annotations

import os

from jobs.store.adapters.manifest import Manifest
from jobs.store.runs.run_store import RunStore
from jobs.train.request import Request


def run_federation(request: Request, runs: RunStore, *, attempt: int) -> Manifest | None:
    """All rounds and the commit, on the Ray that this process has joined.

    Raises InputError, TrainingFailed, StoreError.
    """
    # The server has no accelerator: it averages, and splits updates.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from jobs.federation.server import FederationServer
    from jobs.federation.sites.client_rows import make_request_partition
    from jobs.federation.sites.ray_sites import RaySites
    from jobs.train.driver import describe_missing_resources

    partition = make_request_partition(request)
    if (missing := describe_missing_resources(request)) is not None:
        print(f"waiting for the cluster: {missing}", flush=True)
    sites = RaySites(request)
    try:
        return FederationServer(request, runs, sites, partition, attempt=attempt).run()
    finally:
        sites.close()
