"""The workers that run one trial after another: actors in the placement group of the trial.

They are children of the trial's actor and live in the placement group that Tune made for it, or are
warm workers on the same nodes. When that actor ends or dies, they end too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.errors import TrainingFailed
from jobs.search.tune.trial_task import TrialReport, TrialTask
from jobs.search.tune.trial_worker import ACTOR_THREADS, TrialWorker
from jobs.spec.sections.cluster import ClusterSection
from jobs.train.pool.borrow import WarmGroup, borrow_workers, make_pool_client

START_TIMEOUT_S = 300.0
"""Seconds for the workers of a trial to start; a machine that loads torch cold needs 60."""
STOP_TIMEOUT_S = 20.0
"""Time that a stopped trial has to end by itself; after it its workers are killed."""
NOTICE_S = 600
"""After so many seconds without a report a line says so."""


class TrialWorkerLost(TrainingFailed):
    """A worker died without a report."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "a worker of the trial", reason, "Check whether it was killed or ran out of memory."
        )


class _BorrowedWorker:
    """Calls the trial worker that a warm worker holds, as if it were an actor of its own."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return _BorrowedMethod(self._actor, getattr(TrialWorker, name))


@dataclass(frozen=True)
class _BorrowedMethod:
    actor: Any
    method: Callable[..., Any]

    def remote(self, *args: Any) -> Any:
        return self.actor.call.remote(self.method, *args)


class TrialWorkerGroup:
    """Workers that train together. The first trial starts them, and the next ones reuse them."""

    def __init__(self, cluster: ClusterSection) -> None:
        self._cluster = cluster
        self._workers: list[Any] = []
        self._warm_group: WarmGroup | None = None
        self._running: list[Any] = []
        self._next_report: Any = None
        self._start_number = 0

    def start_trial(self, task: TrialTask) -> None:
        """Start a trial. Raise TrialWorkerLost."""
        try:
            if not self._workers:
                self._start_workers()
            self._start_number += 1
            self._running = [
                worker.train.remote(task, self._start_number) for worker in self._workers
            ]
        except RayActorError as error:
            raise self._make_lost_error(error) from error

    def wait_for_report(self) -> TrialReport:
        """Wait for the next report. Raise TrialWorkerLost."""
        if self._next_report is None:
            self._next_report = self._workers[0].wait_for_report.remote(self._start_number)
        waiting = [self._next_report, *self._running]
        silence_s = 0
        try:
            while True:
                ready, _ = ray.wait(waiting, num_returns=1, timeout=NOTICE_S)
                if not ready:
                    silence_s += NOTICE_S
                    print(f"the trial has sent no report for {silence_s} s", flush=True)
                if self._next_report in ready:
                    report: TrialReport = ray.get(self._next_report)
                    self._next_report = None
                    return report
                # The training of a worker ends with a report, or because the worker died.
                for training in ready:
                    if (failure := ray.get(training)) and not self._wait_for_first_worker():
                        self.close()
                        return TrialReport(ended=True, failure=failure)
                    waiting.remove(training)
        except RayActorError as error:
            raise self._make_lost_error(error) from error

    def continue_trial(self) -> None:
        """Continue the trial after a report."""
        for worker in self._workers:
            worker.continue_or_stop.remote(self._start_number, True)

    def stop_trial(self) -> None:
        """Stop the trial. The workers are kept if they end within STOP_TIMEOUT_S."""
        if not self._running:
            return
        for worker in self._workers:
            worker.continue_or_stop.remote(self._start_number, False)
        done, unfinished = ray.wait(
            self._running, num_returns=len(self._running), timeout=STOP_TIMEOUT_S
        )
        if unfinished or any(_has_died(training) for training in done):
            self.close()
        self._running, self._next_report = [], None

    def finish_trial(self, last_report: TrialReport) -> None:
        """Wait for all workers after the last report. Raise TrialWorkerLost.

        If one has failed, the others may wait for it for ever: they have STOP_TIMEOUT_S. After a
        trial that has ended well they have cluster.timeout, and are replaced if they need longer.
        """
        if not self._running:
            return
        timeout_s = STOP_TIMEOUT_S if last_report.failure else self._cluster.timeout
        done, unfinished = ray.wait(
            self._running, num_returns=len(self._running), timeout=timeout_s
        )
        try:
            ray.get(done)
        except RayActorError as error:
            raise self._make_lost_error(error) from error
        if unfinished or last_report.worker_unusable:
            self.close()
        self._running = []

    def close(self) -> None:
        """Kill the workers."""
        if self._warm_group is not None:
            self._warm_group.close()
            self._warm_group = None
        else:
            for worker in self._workers:
                ray.kill(worker)
        self._workers, self._running, self._next_report = [], [], None

    def _wait_for_first_worker(self) -> bool:
        """Return whether the first worker reports too; it may wait for ever for a failed one."""
        ready, _ = ray.wait([self._next_report], timeout=STOP_TIMEOUT_S)
        return bool(ready)

    def _start_workers(self) -> None:
        self._workers = self._borrow_workers() or self._make_workers()
        try:
            self._join_workers()
        except GetTimeoutError as error:
            self.close()
            reason = f"{len(self._workers)} workers did not start within {START_TIMEOUT_S} s"
            raise TrialWorkerLost(reason) from error

    def _borrow_workers(self) -> list[Any]:
        """Return warm workers on the nodes of this trial, or none."""
        cluster = self._cluster
        assert isinstance(cluster.workers, int)
        # Ray shows the GPUs of a bundle to the workers that it starts in it only.
        if cluster.gpus_per_worker or (client := make_pool_client(cluster)) is None:
            return []
        bundles = placement_group_table(ray.util.get_current_placement_group())
        nodes = [bundles["bundles_to_node_id"][number] for number in range(cluster.workers)]
        self._warm_group = borrow_workers(client, cluster, reserved=nodes)
        if self._warm_group is None:
            return []
        make_worker = functools.partial(TrialWorker, threads=cluster.cpus_per_worker, gpu=False)
        for worker in self._warm_group.workers:
            worker.set_up.remote(client.variables, make_worker)
        return [_BorrowedWorker(worker) for worker in self._warm_group.workers]

    def _make_workers(self) -> list[Any]:
        cluster = self._cluster
        group = ray.util.get_current_placement_group()
        assert isinstance(cluster.workers, int)
        make_worker = ray.remote(TrialWorker).options
        return [
            make_worker(
                num_cpus=cluster.cpus_per_worker,
                num_gpus=cluster.gpus_per_worker,
                max_concurrency=ACTOR_THREADS,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=number
                ),
            ).remote(threads=cluster.cpus_per_worker, gpu=cluster.gpus_per_worker > 0)
            for number in range(cluster.workers)
        ]

    def _join_workers(self) -> None:
        """Make one process group of the workers. Raise GetTimeoutError."""
        workers, timeout_s = self._workers, self._cluster.timeout
        address = ray.get(workers[0].find_free_address.remote(), timeout=START_TIMEOUT_S)
        joining = [
            worker.init_process_group.remote(address, rank, len(workers), timeout_s)
            for rank, worker in enumerate(workers)
        ]
        ray.get(joining, timeout=START_TIMEOUT_S + timeout_s)

    def _make_lost_error(self, error: RayActorError) -> TrialWorkerLost:
        self.close()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return TrialWorkerLost(lines[-1].rstrip(".") if lines else type(error).__name__)


def _has_died(training: Any) -> bool:
    try:
        ray.get(training)
    except RayActorError:
        return True
    return False


def make_bundles(cluster: ClusterSection) -> list[dict[str, float]]:
    """Return the resources of a trial: none for its own actor, then those of each worker."""
    assert isinstance(cluster.workers, int)
    worker_bundle: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        worker_bundle["GPU"] = cluster.gpus_per_worker
    return [{}, *(dict(worker_bundle) for _ in range(cluster.workers))]
