"""A run on warm workers: it ends there, or the driver continues it on workers of Ray Train."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError

from jobs.spec.sections.cluster import ClusterSection
from jobs.store.runs.run_store import RunStore
from jobs.train.cluster.run_failure import describe_failure, read_failure
from jobs.train.monitor.phases import end_phase
from jobs.train.pool.borrow import (
    WarmGroup,
    borrow_workers,
    make_pool_client,
    read_visible_gpus,
)
from jobs.train.pool.warm_rank import RankSetup, WarmRank
from jobs.train.request import RunAttempt

DRAIN_INTERVAL_S = 5.0
"""Seconds between two looks at the nodes that Ray drains."""
OTHERS_TIMEOUT_S = 5.0
"""Seconds for the other workers to say why they ended, once one has failed."""


@dataclass(frozen=True)
class WarmOutcome:
    """How a run on warm workers ended."""

    failures: Mapping[int, Exception] = field(default_factory=dict)
    """The errors by rank; empty if the run is complete."""
    was_drained: bool = False
    """Whether Ray took one of its machines away, which counts as no failure."""

    @property
    def count(self) -> int:
        """Return how many failures to count against the run's limit."""
        return int(bool(self.failures) and not self.was_drained)


def run_warm(attempt: RunAttempt, runs: RunStore) -> WarmOutcome | None:
    """Run on warm workers. Return None if there are not enough of them.

    Raise TrainingFailed for a failure that would repeat.
    """
    cluster = attempt.request.spec.cluster
    client = make_pool_client(cluster)
    if client is None or (group := borrow_workers(client, cluster)) is None:
        return None
    try:
        warm_run, placed = _WarmRun(group, cluster), time.time()
        address = warm_run.set_up()
        if attempt.start is not None:
            # Only now: if the set-up fails, Ray Train's workers are what the run waits for.
            start = end_phase(runs.phase_events, attempt.start, "placement", placed)
            attempt = replace(attempt, start=start)
        outcome = warm_run.train(address, attempt)
    except RayError:
        # A worker died before the run started on it.
        return None
    finally:
        group.close()
    if (failure := read_failure(runs)) is not None:
        raise failure
    if outcome.failures:
        rank, error = next(iter(outcome.failures.items()))
        reason = f"warm worker {rank} was lost: {describe_failure(error)}"
        runs.events.append({"event": "restarted", "time": time.time(), "why": reason[:500]})
    return outcome


class _WarmRun:
    def __init__(self, group: WarmGroup, cluster: ClusterSection) -> None:
        self._group, self._cluster, self._was_drained = group, cluster, False

    def train(self, address: str, attempt: RunAttempt) -> WarmOutcome:
        """Run all ranks to their end, with this address of their process group."""
        running = {
            worker.call.remote(WarmRank.run, address, attempt): rank
            for rank, worker in enumerate(self._group.workers)
        }
        failures = self._wait(running)
        return WarmOutcome(failures, self._was_drained)

    def set_up(self) -> str:
        """Prepare the workers and return the address of their process group. Raise RayError."""
        group = self._group
        setting_up = [
            worker.set_up.remote(group.client.variables, WarmRank, setup)
            for worker, setup in zip(group.workers, self._make_setups(), strict=True)
        ]
        ray.get(setting_up)
        address: str = ray.get(group.workers[0].call.remote(WarmRank.find_free_address))
        return address

    def _make_setups(self) -> list[RankSetup]:
        group, cluster = self._group, self._cluster
        on_gpu = cluster.gpus_per_worker > 0
        gpus = read_visible_gpus(group, cluster) if on_gpu else [[] for _ in group.workers]
        ranks_by_node, setups = Counter[str](), []
        for number, node in enumerate(group.nodes):
            peers = [own for own, other in zip(gpus, group.nodes, strict=True) if other == node]
            setups.append(
                RankSetup(
                    number=number,
                    world_size=len(group.workers),
                    local_number=ranks_by_node[node],
                    timeout_s=cluster.timeout,
                    gpus=tuple(gpu for own in peers for gpu in own),
                    gpus_per_worker=cluster.gpus_per_worker,
                )
            )
            ranks_by_node[node] += 1
        return setups

    def _wait(self, running: dict[Any, int]) -> dict[int, Exception]:
        """Return the errors by rank; the workers that only wait for a lost one are not awaited."""
        waiting, failures = list(running), dict[int, Exception]()
        while waiting:
            timeout_s = OTHERS_TIMEOUT_S if failures else DRAIN_INTERVAL_S
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=timeout_s)
            for training in ready:
                try:
                    ray.get(training)
                except Exception as error:
                    # Whatever the worker raised: Ray raises it here once more.
                    failures[running[training]] = error
            if failures and not ready:
                break
            self._warn_if_drained()
        return failures

    def _warn_if_drained(self) -> None:
        """Tell all workers once that Ray takes one of their machines away: they save."""
        if self._was_drained:
            return
        draining = ray._private.state.state.get_draining_nodes()
        if draining.keys() & set(self._group.nodes):
            self._was_drained = True
            for worker in self._group.workers:
                worker.call.remote(WarmRank.warn)
