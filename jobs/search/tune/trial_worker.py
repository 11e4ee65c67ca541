"""One worker of a search: a Ray actor that imports torch once, and trains one trial after another.

Its threads: one trains, one waits for the next report, one brings the verdict.
"""

from __future__ import annotations

import datetime
import gc
import os
import queue
import socket
from typing import Any

from jobs.errors import JobsError
from jobs.search.tune.trial_task import TrialReport, TrialTask
from jobs.store.base import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.data.tokenization import Sample
from jobs.train.request import FederationRequest
from jobs.train.worker import ENVIRONMENT
from slora.errors import SloraError

ACTOR_THREADS = 4
"""Calls of an actor that run at once: train, next_report, verdict, and one to ask how it is."""


class TrialWorker:
    """What the actor is. Every rank of a crew has one."""

    def __init__(self, *, threads: int, gpu: bool) -> None:
        os.environ.update(ENVIRONMENT, **({} if gpu else {"DS_ACCELERATOR": "cpu"}))
        self._threads, self._gpu = threads, gpu
        self._reports: queue.SimpleQueue[tuple[int, TrialReport]] = queue.SimpleQueue()
        self._decisions: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
        self._token_caches: dict[Any, dict[Any, Sample]] = {}
        self._rank = self._world_size = 0
        self._start_number = 0

    def address(self) -> str:
        """host:port that nobody listens at, for the crew to meet."""
        import ray

        with socket.socket() as free_socket:
            free_socket.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free_socket.getsockname()[1]}"

    def join(self, address: str, rank: int, world_size: int, timeout_s: int) -> None:
        """Meets the rest of the crew; for as long as the actor lives."""
        import torch

        from jobs.train.comm.deepspeed_comm import init_deepspeed

        self._rank, self._world_size = rank, world_size
        # DeepSpeed reads who is who from here, whatever group it is handed.
        environment = {
            "RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_RANK": 0 if self._gpu else rank,
        }
        os.environ.update({name: str(value) for name, value in environment.items()})
        backend = "nccl" if self._gpu else "gloo"
        torch.distributed.init_process_group(
            backend, init_method=f"tcp://{address}", rank=rank, world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )  # fmt: skip
        init_deepspeed(backend)

    def train(self, task: TrialTask, start_number: int) -> str:
        """One trial, from where its run is. Its end is a report too; returns why it failed.

        `start` numbers the starts of the crew: a trial that was paused is started again.
        """
        self._start_number = start_number
        report = self._train_or_fail(task)
        self._reports.put((start_number, report))
        return report.failure

    def next_report(self, start_number: int) -> TrialReport:
        """Waits for it. What a start that was stopped had still to say is nobody's concern."""
        while True:
            report_start, report = self._reports.get()
            if report_start == start_number:
                return report

    def verdict(self, start_number: int, continues: bool) -> None:
        """What the search says to the newest report of that start."""
        self._decisions.put((start_number, continues))

    def _exchange_report(self, report: TrialReport) -> bool:
        if self._rank == 0:
            self._reports.put((self._start_number, report))
        while True:
            # One that came too late for the start before must not end this one.
            decision_start, continues = self._decisions.get()
            if decision_start == self._start_number:
                return continues

    def _train_or_fail(self, task: TrialTask) -> TrialReport:
        import torch

        from jobs.search.trial import StoppedEarly

        if not self._gpu:
            torch.set_num_threads(self._threads)
        try:
            return self._run_task(task)
        except StoppedEarly:
            return TrialReport(0, {}, 0, ended=True)
        except (JobsError, SloraError) as error:
            return TrialReport(0, {}, 0, ended=True, failure=" ".join(str(error).split()))
        except Exception as error:
            # Whatever a trial's values make a library raise is the trial's end, not the search's.
            message = " ".join(str(error).split())[:500]
            # CUDA's own errors stay with the process, and would be the next trial's too.
            failure = f"{type(error).__name__}: {message}"
            return TrialReport(0, {}, 0, ended=True, failure=failure, worker_unusable=self._gpu)
        finally:
            gc.collect()

    def _run_task(self, task: TrialTask) -> TrialReport:
        import ray
        import torch

        from jobs.search.federated_trial import run_federated_trial
        from jobs.search.trial import SearchTrial, make_final_report
        from jobs.train.comm.collectives import make_worker_context
        from jobs.train.localize import localize_request

        store = open_store(task.request.spec.store)
        device = torch.device("cuda:0" if self._gpu else "cpu")
        machine = ray.get_runtime_context().get_node_id()
        team = make_worker_context(self._rank, self._world_size, device, machine=machine)
        runs = RunStore(store, task.request.run_id)
        local_task = TrialTask(**{**vars(task), "request": localize_request(task.request)})
        if isinstance(local_task.request, FederationRequest):
            return run_federated_trial(local_task, runs, device, search=RunStore(store, task.search),
                             send_report=self._exchange_report)  # fmt: skip
        trial = SearchTrial(
            local_task, runs, team, search=RunStore(store, task.search), send_report=self._exchange_report,
            token_caches=self._token_caches,
        )  # fmt: skip
        try:
            trial.run()
        finally:
            trial.saver.close()
        return make_final_report(trial)
