"""Preemption: this worker will be stopped soon, says SIGTERM. No Ray."""

from __future__ import annotations

import signal
import threading
from types import FrameType


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
