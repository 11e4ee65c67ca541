"""The workers of one trial after another: actors in the trial's own placement group.

They are children of the trial's actor and live in the placement group that Tune made for it: when
Tune ends the trial's actor, or that dies, Ray ends them too, and nothing of them is left.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.errors import TrainingFailed
from jobs.search.order import Order, Report
from jobs.search.seat import THREADS, Seat
from jobs.spec import ClusterSection

STOP_S = 20.0
"""Seconds that a stopped trial has to end by itself, from its evaluation; then its crew dies."""


class Lost(TrainingFailed):
    """A worker of the crew died without a word."""

    def __init__(self, said: str) -> None:
        super().__init__("a worker of the trial", said, "Was it killed, or out of memory?")


class Crew:
    """Workers that train together. They are started by the first trial, and kept for the next."""

    def __init__(self, cluster: ClusterSection) -> None:
        self._cluster = cluster
        self._seats: list[Any] = []
        self._running: list[Any] = []
        self._next: Any = None
        self._start_number = 0

    def begin(self, order: Order) -> None:
        """Starts a trial. Raises Lost."""
        try:
            if not self._seats:
                self._start()
            self._start_number += 1
            self._running = [seat.train.remote(order, self._start_number) for seat in self._seats]
        except RayActorError as dead:
            raise self._lost(dead) from dead

    def report(self) -> Report:
        """Waits for the next one. Raises Lost."""
        if self._next is None:
            self._next = self._seats[0].next_report.remote(self._start_number)
        waiting = [self._next, *self._running]
        try:
            while True:
                ready, _ = ray.wait(waiting, num_returns=1)
                if self._next in ready:
                    found: Report = ray.get(self._next)
                    self._next = None
                    return found
                # A worker's training ends with its report, or with its death.
                for ended in ready:
                    if (failed := ray.get(ended)) and not self._soon():
                        self.close()
                        return Report(0, {}, 0, ended=True, failed=failed)
                    waiting.remove(ended)
        except RayActorError as dead:
            raise self._lost(dead) from dead

    def go_on(self) -> None:
        """After a report: the trial goes on."""
        for seat in self._seats:
            seat.verdict.remote(self._start_number, True)

    def stop(self) -> None:
        """Ends the trial; the crew stays, where it ends soon."""
        if not self._running:
            return
        for seat in self._seats:
            seat.verdict.remote(self._start_number, False)
        done, late = ray.wait(self._running, num_returns=len(self._running), timeout=STOP_S)
        if late or any(_broken(one) for one in done):
            self.close()
        self._running, self._next = [], None

    def finished(self, last: Report) -> None:
        """After the last report: waits for all workers. Raises Lost.

        Where one has failed the others may wait for it in vain: they have STOP_S.
        """
        if not self._running:
            return
        patience = STOP_S if last.failed else None
        done, late = ray.wait(self._running, num_returns=len(self._running), timeout=patience)
        try:
            ray.get(done)
        except RayActorError as dead:
            raise self._lost(dead) from dead
        if late or last.spoilt:
            self.close()
        self._running = []

    def close(self) -> None:
        """Ends the workers at once."""
        for seat in self._seats:
            ray.kill(seat)
        self._seats, self._running, self._next = [], [], None

    def _soon(self) -> bool:
        """Whether the first worker reports too; it waits for ever for one that failed alone."""
        told, _ = ray.wait([self._next], timeout=STOP_S)
        return bool(told)

    def _start(self) -> None:
        cluster = self._cluster
        group = ray.util.get_current_placement_group()
        assert isinstance(cluster.workers, int)
        make = ray.remote(Seat).options
        self._seats = [
            make(
                num_cpus=cluster.cpus_per_worker,
                num_gpus=cluster.gpus_per_worker,
                max_concurrency=THREADS,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=number
                ),
            ).remote(threads=cluster.cpus_per_worker, gpu=cluster.gpus_per_worker > 0)
            for number in range(cluster.workers)
        ]
        address = ray.get(self._seats[0].address.remote())
        ray.get(
            [
                seat.join.remote(address, rank, len(self._seats), cluster.timeout)
                for rank, seat in enumerate(self._seats)
            ]
        )

    def _lost(self, dead: RayActorError) -> Lost:
        self.close()
        lines = [line.strip() for line in str(dead).splitlines() if line.strip()]
        return Lost(lines[-1].rstrip(".") if lines else type(dead).__name__)


def _broken(done: Any) -> bool:
    try:
        ray.get(done)
    except RayActorError:
        return True
    return False


def bundles(cluster: ClusterSection) -> list[dict[str, float]]:
    """What a trial holds of the cluster: nothing for its own actor, and each worker's part."""
    assert isinstance(cluster.workers, int)
    each: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        each["GPU"] = cluster.gpus_per_worker
    return [{}, *(dict(each) for _ in range(cluster.workers))]
