"""A worker of a search: a Ray actor that imports torch once and trains one trial after another.

One of its threads trains, one waits for the next report, and one delivers the decision on it.
"""

from __future__ import annotations

import gc
import os
import queue
from dataclasses import replace

from jobs.errors import JobsError
from jobs.search.tune.trial_task import TrialReport, TrialTask
from jobs.train.comm.rendezvous import find_free_address, join_process_group
from jobs.train.request import FederationRequest
from jobs.train.worker import ENVIRONMENT
from slora.errors import SloraError

ACTOR_THREADS = 4
"""Concurrent calls: train, wait_for_report, continue_or_stop, and one for Ray's own checks."""


class TrialWorker:
    """The actor of one rank."""

    def __init__(self, *, threads: int, gpu: bool) -> None:
        os.environ.update(ENVIRONMENT, **({} if gpu else {"DS_ACCELERATOR": "cpu"}))
        self._threads, self._gpu = threads, gpu
        self._reports: queue.SimpleQueue[tuple[int, TrialReport]] = queue.SimpleQueue()
        self._decisions: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
        self._rank = self._world_size = 0
        self._start_number = 0

    def find_free_address(self) -> str:
        """Return a free host:port for the process group."""
        return find_free_address()

    def init_process_group(self, address: str, rank: int, world_size: int, timeout_s: int) -> None:
        """Join the process group of all workers, for the lifetime of the actor."""
        self._rank, self._world_size = rank, world_size
        # Ray shows each of them its own GPU only.
        local_rank = 0 if self._gpu else rank
        join_process_group(
            address,
            rank,
            world_size,
            local_rank=local_rank,
            gpu=self._gpu,
            timeout_s=timeout_s,
        )

    def train(self, task: TrialTask, start_number: int) -> str:
        """Run one trial, resuming its run. Report its end too, and return the reason if it failed.

        `start_number` counts the starts of the workers: a paused trial is started again.
        """
        self._start_number = start_number
        report = self._train_or_fail(task)
        self._reports.put((start_number, report))
        return report.failure

    def wait_for_report(self, start_number: int) -> TrialReport:
        """Return the next report of this start. Reports of stopped starts are dropped."""
        while True:
            report_start, report = self._reports.get()
            if report_start == start_number:
                return report

    def continue_or_stop(self, start_number: int, continues: bool) -> None:
        """Deliver the decision on the newest report of that start."""
        self._decisions.put((start_number, continues))

    def _exchange_report(self, report: TrialReport) -> bool:
        if self._rank == 0:
            self._reports.put((self._start_number, report))
        while True:
            # A late decision on an earlier start must not end this one.
            decision_start, continues = self._decisions.get()
            if decision_start == self._start_number:
                return continues

    def _train_or_fail(self, task: TrialTask) -> TrialReport:
        import torch

        from jobs.train.hooks import StoppedEarly

        if not self._gpu:
            torch.set_num_threads(self._threads)
        try:
            return self._run_task(task)
        except StoppedEarly:
            return TrialReport(ended=True)
        except (JobsError, SloraError) as error:
            return TrialReport(ended=True, failure=" ".join(str(error).split()))
        except Exception as error:
            # An exception that a trial's values cause ends the trial, not the search.
            message = " ".join(str(error).split())[:500]
            # CUDA errors persist in the process, and would fail the next trial too.
            failure = f"{type(error).__name__}: {message}"
            return TrialReport(ended=True, failure=failure, worker_unusable=self._gpu)
        finally:
            gc.collect()

    def _run_task(self, task: TrialTask) -> TrialReport:
        import ray
        import torch

        from jobs.train.comm.collectives import make_worker_context
        from jobs.train.localize import localize_request

        task = replace(task, request=localize_request(task.request))
        request = task.request
        device = torch.device("cuda:0" if self._gpu else "cpu")
        machine = ray.get_runtime_context().get_node_id()
        context = make_worker_context(self._rank, self._world_size, device, machine=machine)
        if isinstance(request, FederationRequest):
            from jobs.search.federated_trial import run_federated_trial

            return run_federated_trial(task, device, send_report=self._exchange_report)
        from jobs.search.trial import run_trial

        return run_trial(task, context, send_report=self._exchange_report)
