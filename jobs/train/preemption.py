"""Whether this worker has been told that it will be stopped soon: by SIGTERM, or by Ray."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.context import get_train_context

_SIGTERM_RECEIVED = threading.Event()


class PreemptibleTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's process group, of workers that may save after a SIGTERM, and that may hang."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train starts on the workers."""
        return _PreemptibleBackend


class _PreemptibleBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        # Here, because a handler can only be set by a process's main thread, and training runs in
        # another one.
        worker_group.execute(_install_handler)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Nothing: Ray kills the workers next, and their process group goes with them.

        To take it down first, Ray waits 30 s for a worker that hangs.
        """


def is_preemption_requested() -> bool:
    """Whether this worker's process was sent SIGTERM, or Ray drains a machine of this run.

    Looks at what lies in this process only. Ray's public `get_preemption_info` is a broadcast that
    all ranks must join, at every step; ours agree by the notice that travels with the gradients.
    """
    return (
        _SIGTERM_RECEIVED.is_set()
        or get_train_context().preemption_context.preemption_info is not None
    )


def _install_handler() -> None:
    _SIGTERM_RECEIVED.clear()
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _SIGTERM_RECEIVED.set()
