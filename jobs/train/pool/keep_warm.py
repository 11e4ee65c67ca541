"""Keep warm workers for the next run of this project, after one has ended."""

from __future__ import annotations

from contextlib import suppress

import ray
from ray.exceptions import RayError

from jobs.train.pool.borrow import PoolClient, make_pool_client
from jobs.train.pool.pool_actor import WorkerPool
from jobs.train.pool.pool_identity import NAMESPACE
from jobs.train.request import Request


def keep_warm(request: Request) -> None:
    """Start the pool of this job's project, or tell it what to keep. Returns at once."""
    # The run is complete: whatever happens to the pool does not concern it.
    with suppress(RayError):
        if (client := make_pool_client(request.spec.cluster)) is not None:
            start_pool(client)


def start_pool(pool_client: PoolClient) -> None:
    """Start the pool unless it runs. It outlives this job, and ends by itself."""
    if (pool := pool_client.find()) is not None:
        pool.keep.remote(pool_client.policy)
        return
    # A detached actor has the variables of the job that starts it: those of the attempt are
    # emptied, for its workers too.
    ray.remote(WorkerPool).options(
        name=pool_client.identity.name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        runtime_env={"env_vars": dict.fromkeys(pool_client.variables, "")},
    ).remote(pool_client.identity, pool_client.policy)
