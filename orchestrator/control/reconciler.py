"""Reconcile one cluster: list its jobs, follow its runs, handle orphans, dispatch the queue.

It can be killed at any time and started again, here or elsewhere. Only the service that holds the
cluster's lease writes, a submission has the id of its attempt, and the next pass observes what was
done before a crash. Nothing is decided while the cluster does not answer: unreachable is not dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from orchestrator.cluster.base import Cluster
from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.control.dispatcher import Dispatcher
from orchestrator.control.follower import Follower
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.orphans import Orphans
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LeaseLost, LostUpdate
from orchestrator.registry.leases import Lease, LeaseKeeper

LEASE_S = 30.0

log = logging.getLogger(__name__)


class Reconciler:
    """Reconciles one cluster."""

    def __init__(
        self,
        database: Database,
        cluster: Cluster,
        *,
        holder: str,
        follower: Follower,
        dispatcher: Dispatcher,
        orphans: Orphans,
        metrics: ServiceMetrics,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._answered_at = clock, clock()
        self._cluster, self._metrics = cluster, metrics
        self._follower, self._dispatcher, self._orphans = follower, dispatcher, orphans
        self._lease = LeaseKeeper(database, f"cluster.{cluster.name}", holder, seconds=lease_s)

    def reconcile(self) -> bool:
        """Run one pass.

        Return False if another service holds the cluster, or the cluster does not answer. Raise
        DatabaseUnreachable; every transaction is complete or not written then.
        """
        lease = self._lease.ensure()
        if lease is None:
            return False
        name = self._cluster.name
        try:
            with self._metrics.reconcile_seconds.labels(name).time():
                self._run_pass(lease)
        except ClusterUnreachable as unreachable:
            self._metrics.cluster_up.labels(name).set(0)
            log.warning("cluster %s: %s", name, unreachable)
            return False
        except LeaseLost:
            return False
        except LostUpdate as conflict:
            log.info("cluster %s: %s", name, conflict)
        self._metrics.cluster_up.labels(name).set(1)
        return True

    def measure_answer_age(self) -> float:
        """Return the seconds since the cluster answered, or since the start if it never did."""
        return self._clock() - self._answered_at

    def close(self) -> None:
        """Release the lease, so that another service can reconcile the cluster at once."""
        self._lease.release()

    def _run_pass(self, lease: Lease) -> None:
        job_statuses = self._cluster.list_jobs()
        self._answered_at = self._clock()
        self._follower.follow(self._orphans.exclude_foreign_jobs(job_statuses), lease)
        self._orphans.reconcile_orphans(job_statuses)
        self._dispatcher.dispatch(
            self._orphans.get_live_attempts(job_statuses), lease, self._follower.submit
        )
