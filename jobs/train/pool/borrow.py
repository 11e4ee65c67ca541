"""Borrow warm workers, and reserve the CPUs and GPUs on their nodes that they are to use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.spec.sections.cluster import ClusterSection
from jobs.train.pool.pool_actor import PoolPolicy
from jobs.train.pool.pool_identity import (
    NAMESPACE,
    PoolIdentity,
    identify_pool,
    read_warm_workers,
    select_attempt_variables,
)

REPLY_TIMEOUT_S = 5.0
"""Seconds for a pool to answer; it only looks at its own list."""
RESERVE_TIMEOUT_S = 2.0
"""Seconds for the reservation: if the cluster is busy, the run waits for any of its nodes."""


@dataclass(frozen=True)
class PoolClient:
    """A job's view of its pool."""

    identity: PoolIdentity
    policy: PoolPolicy
    variables: Mapping[str, str] = field(repr=False)
    """Variables of the attempt, which may hold credentials."""

    def find(self) -> Any | None:
        """Return the actor of the pool, or None if there is none."""
        try:
            return ray.get_actor(self.identity.name, NAMESPACE)
        except ValueError:
            return None


@dataclass
class WarmGroup:
    """Borrowed workers by rank, and what is reserved for them."""

    client: PoolClient
    workers: list[Any]
    nodes: list[str]
    lease: Any
    reservation: PlacementGroup | None = None
    """None where somebody else has reserved what the workers use."""

    def close(self) -> None:
        """End the workers and release the reservation."""
        for worker in self.workers:
            with suppress(RayError):
                ray.kill(worker)
        if self.reservation is not None:
            remove_placement_group(self.reservation)


def make_pool_client(cluster: ClusterSection) -> PoolClient | None:
    """Return the client of this job's pool; None if it keeps no warm workers, or can't use them.

    Raise InputError for a bad SLORA_WARM_WORKERS.
    """
    runtime_env = dict(ray.get_runtime_context().runtime_env or {})
    variables = runtime_env.get("env_vars") or {}
    target = read_warm_workers(variables)
    if not target or not isinstance(cluster.workers, int):
        return None
    identity = identify_pool(runtime_env, gpu=cluster.gpus_per_worker > 0)
    policy = PoolPolicy(target, cluster.cpus_per_worker, cluster.gpus_per_worker)
    return PoolClient(identity, policy, select_attempt_variables(variables))


def borrow_workers(
    pool_client: PoolClient, cluster: ClusterSection, *, reserved: list[str] | None = None
) -> WarmGroup | None:
    """Return as many workers as the run needs, or None if it has to start its own.

    CPUs and GPUs are reserved for them, which the cluster has to have free now. `reserved`: the
    nodes on which they are reserved already, one for each worker.
    """
    count = cluster.workers
    try:
        pool = pool_client.find()
    except RayError:
        return None
    if pool is None:
        return None
    # The pool never answers this call. This process owns its reference, and Ray breaks that when
    # the process ends, however it ends: the workers see it.
    lease = pool.hold.remote()
    try:
        lending = pool.lend.remote(count, [lease], pool_client.policy, reserved)
        lent = ray.get(lending, timeout=REPLY_TIMEOUT_S)
    except RayError:
        return None
    if not lent:
        return None
    group = WarmGroup(
        pool_client, [worker for _, worker in lent], [node for node, _ in lent], lease
    )
    if reserved is None and not _reserve(group, cluster):
        group.close()
        return None
    return group


def read_visible_gpus(group: WarmGroup, cluster: ClusterSection) -> list[list[str]]:
    """Return the ids of the GPUs that are reserved for each worker."""
    assert group.reservation is not None
    read = ray.remote(_list_gpus).options
    tasks = [
        read(
            num_cpus=0,
            num_gpus=cluster.gpus_per_worker,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group.reservation, placement_group_bundle_index=number
            ),
        ).remote()
        for number in range(len(group.workers))
    ]
    gpus: list[list[str]] = ray.get(tasks)
    return gpus


def _list_gpus() -> list[str]:
    return [str(gpu) for gpu in ray.get_gpu_ids()]


def _reserve(group: WarmGroup, cluster: ClusterSection) -> bool:
    bundle: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        bundle["GPU"] = cluster.gpus_per_worker
    group.reservation = placement_group(
        [dict(bundle) for _ in group.nodes],
        bundle_label_selector=[{"ray.io/node-id": node} for node in group.nodes],
    )
    return bool(group.reservation.wait(RESERVE_TIMEOUT_S))
