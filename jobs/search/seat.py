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

from jobs.data.tokens import Sample
from jobs.errors import JobsError
from jobs.search.order import Order, Report
from jobs.store.objects import open_store
from jobs.store.runs import RunStore
from jobs.worker import ENVIRONMENT
from slora.errors import SloraError

THREADS = 4
"""Calls of an actor that run at once: train, next_report, verdict, and one to ask how it is."""


class Seat:
    """What the actor is. Every rank of a crew has one."""

    def __init__(self, *, threads: int, gpu: bool) -> None:
        os.environ.update(ENVIRONMENT, **({} if gpu else {"DS_ACCELERATOR": "cpu"}))
        self._threads, self._gpu = threads, gpu
        self._reports: queue.SimpleQueue[tuple[int, Report]] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
        self._tokens: dict[Any, dict[Any, Sample]] = {}
        self._rank = self._world_size = 0
        self._start = 0

    def address(self) -> str:
        """host:port that nobody listens at, for the crew to meet."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def join(self, address: str, rank: int, world_size: int, timeout_s: int) -> None:
        """Meets the rest of the crew; for as long as the actor lives."""
        import torch

        from jobs.deepspeed_wire import distributed

        self._rank, self._world_size = rank, world_size
        # DeepSpeed reads who is who from here, whatever group it is handed.
        told = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0 if self._gpu else rank}
        os.environ.update({name: str(value) for name, value in told.items()})
        backend = "nccl" if self._gpu else "gloo"
        torch.distributed.init_process_group(
            backend, init_method=f"tcp://{address}", rank=rank, world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )  # fmt: skip
        distributed(backend)

    def train(self, order: Order, start: int) -> str:
        """One trial, from where its run is. Its end is a report too; returns why it failed.

        `start` numbers the starts of the crew: a trial that was paused is started again.
        """
        self._start = start
        last = self._trained(order)
        self._reports.put((start, last))
        return last.failed

    def next_report(self, start: int) -> Report:
        """Waits for it. What a start that was stopped had still to say is nobody's concern."""
        while True:
            whose, report = self._reports.get()
            if whose == start:
                return report

    def verdict(self, start: int, goes_on: bool) -> None:
        """What the search says to the newest report of that start."""
        self._verdicts.put((start, goes_on))

    def _tell(self, report: Report) -> bool:
        if self._rank == 0:
            self._reports.put((self._start, report))
        while True:
            # One that came too late for the start before must not end this one.
            whose, goes_on = self._verdicts.get()
            if whose == self._start:
                return goes_on

    def _trained(self, order: Order) -> Report:
        import torch

        from jobs.search.trial import StoppedEarly

        if not self._gpu:
            torch.set_num_threads(self._threads)
        try:
            return self._run(order)
        except StoppedEarly:
            return Report(0, {}, 0, ended=True)
        except (JobsError, SloraError) as failed:
            return Report(0, {}, 0, ended=True, failed=" ".join(str(failed).split()))
        except Exception as failed:
            # Whatever a trial's values make a library raise is the trial's end, not the search's.
            said = " ".join(str(failed).split())[:500]
            # CUDA's own errors stay with the process, and would be the next trial's too.
            why = f"{type(failed).__name__}: {said}"
            return Report(0, {}, 0, ended=True, failed=why, spoilt=self._gpu)
        finally:
            gc.collect()

    def _run(self, order: Order) -> Report:
        import ray
        import torch

        from jobs.at_hand import at_hand
        from jobs.search.federated import federated
        from jobs.search.trial import Trial, ending
        from jobs.team import team_of

        store = open_store(order.request.spec.store)
        device = torch.device("cuda:0" if self._gpu else "cpu")
        machine = ray.get_runtime_context().get_node_id()
        team = team_of(self._rank, self._world_size, device, machine=machine)
        runs = RunStore(store, order.request.run_id)
        here = Order(**{**vars(order), "request": at_hand(order.request)})
        if here.request.federation is not None:
            return federated(here, runs, device, search=RunStore(store, order.search),
                             tell=self._tell)  # fmt: skip
        trial = Trial(
            here, runs, team, search=RunStore(store, order.search), tell=self._tell,
            tokens=self._tokens,
        )  # fmt: skip
        try:
            trial.run()
        finally:
            trial.saver.close()
        return ending(trial)
