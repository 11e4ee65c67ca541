"""Preemption: this worker will be stopped soon, says SIGTERM or Ray."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.context import get_train_context


class SigtermFlag:
    """A flag that is set if this process is sent SIGTERM after it began to listen.

    A process has one handler for a signal, so there is one flag for each worker's process.
    """

    def __init__(self) -> None:
        self._received = threading.Event()

    def listen(self) -> None:
        """Install the handler. Only a process's main thread can."""
        self._received.clear()
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def is_set(self) -> bool:
        """Return whether SIGTERM was received."""
        return self._received.is_set()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._received.set()


SIGTERM = SigtermFlag()


class PreemptibleTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's process group, for workers that save after a SIGTERM, and that may hang."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return the backend that Ray Train starts on the workers."""
        return _PreemptibleBackend


class _PreemptibleBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        # Here, because only a process's main thread can set a handler, and training runs in
        # another one.
        worker_group.execute(_listen_for_sigterm)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Do nothing: Ray kills the workers next, and their process group with them.

        To shut it down first, Ray would wait 30 s for a worker that hangs.
        """


def is_preemption_requested() -> bool:
    """Return whether this process was sent SIGTERM, or Ray drains a machine of this run.

    Reads only what this process has. Ray's public `get_preemption_info` is a broadcast that all
    ranks must join, at every step; ours agree by a number that travels with the gradients.
    """
    return SIGTERM.is_set() or get_train_context().preemption_context.preemption_info is not None


def _listen_for_sigterm() -> None:
    SIGTERM.listen()
