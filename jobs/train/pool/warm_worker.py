"""A warm worker: an actor that has imported what a run needs, serves one borrower and ends."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jobs.train.pool.node_memory import is_memory_short
from jobs.train.preemption import SIGTERM
from jobs.train.worker import ENVIRONMENT

Result = TypeVar("Result")

THREADS = 8
"""Concurrent calls: the pool's, the borrower's few, and those of Ray's own checks."""
MEMORY_INTERVAL_S = 2.0
"""Seconds between two looks of an idle worker at its node's memory."""
CPU_ENVIRONMENT = {"DS_ACCELERATOR": "cpu"}
GPU_ENVIRONMENT = {"DS_ACCELERATOR": "cuda", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""CUDA reads once which devices it may use, so nobody may ask it before a worker is borrowed:
torch then asks NVML whether there are any."""
MODULES = (
    "torch._dynamo",
    "deepspeed",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "jobs.train.comm.deepspeed_comm",
    "jobs.train.engine.full_engine",
    "jobs.train.evaluate_adapters",
    "jobs.train.fine_tuning",
    "jobs.train.localize",
    "jobs.train.model.base_shards",
    "jobs.train.monitor.watchdog",
)
"""What is imported before a run, also what only some runs use: it costs an idle worker nothing.
No CUDA is initialised by any of them."""


class WarmWorker:
    """The class of the actor."""

    def __init__(self, *, gpu: bool) -> None:
        os.environ.update(ENVIRONMENT, **(GPU_ENVIRONMENT if gpu else CPU_ENVIRONMENT))
        self._is_borrowed, self._is_set_up = threading.Event(), threading.Event()
        self._object: Any = None
        threading.Thread(target=self._leave_if_memory_is_short, daemon=True).start()
        # Only the main thread can set the handler, and it runs nothing but this.
        SIGTERM.listen()
        for name in MODULES:
            importlib.import_module(name)

    def wait_for_end(self) -> None:
        """Never return: the pool sees the end of this process as an error of this call."""
        threading.Event().wait()

    def get_process_id(self) -> int:
        """Return the id of this process on its node."""
        return os.getpid()

    def lend(self, lease: list[Any]) -> None:
        """Belong to a borrower from now on, and end with its process.

        `lease` has a reference whose owner is the borrower, and whose value never comes.
        """
        self._is_borrowed.set()
        threading.Thread(target=_end_with, args=(lease[0],), daemon=True).start()

    def set_up(
        self, environment: Mapping[str, str], make_object: Callable[..., Any], *args: Any
    ) -> None:
        """Take over the environment of the borrower's attempt, and make the object to call."""
        os.environ.update(environment)
        self._object = make_object(*args)
        self._is_set_up.set()

    def call(self, method: Callable[..., Result], *args: Any) -> Result:
        """Call a method of the borrower's object, once there is one: calls are not in order."""
        self._is_set_up.wait()
        return method(self._object, *args)

    def _leave_if_memory_is_short(self) -> None:
        while not self._is_borrowed.wait(MEMORY_INTERVAL_S):
            if is_memory_short() and not self._is_borrowed.is_set():
                os._exit(0)


def _end_with(lease: Any) -> None:
    import ray

    try:
        ray.get(lease)
    except Exception:
        # The borrower is gone, whatever killed it. Ray has released what it had reserved.
        os._exit(0)
