"""The memory of a command and of all the processes that it starts, daemons included."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

MARKER = "PEERS_BENCHMARK"
"""The variable that a command's processes inherit, by which they are found."""
INTERVAL_S, SUM_INTERVAL_S = 0.25, 2.0


class MemorySampler:
    """Samples the processes whose environment has the marker, in a thread of its own."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARKER}={mark}\0".encode()
        self._peaks: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.total_bytes = 0
        """Peak of the proportional memory (PSS) of all processes together."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._ended.set()
        self._thread.join()

    def sum_largest(self, count: int) -> int:
        """Return the sum of the largest peaks of resident memory (VmHWM), in bytes."""
        return sum(sorted(self._peaks.values())[-count:])

    def _sample(self) -> None:
        next_sum = 0.0
        while not self._ended.wait(INTERVAL_S):
            pids = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                    if self._is_marked(pid)]  # fmt: skip
            for pid in pids:
                peak = _read_kilobytes(pid, "status", "VmHWM:")
                self._peaks[pid] = max(self._peaks.get(pid, 0), peak)
            # The kernel walks the pages of a process to sum its PSS: not too often.
            if time.monotonic() >= next_sum:
                total = sum(_read_kilobytes(pid, "smaps_rollup", "Pss:") for pid in pids)
                self.total_bytes = max(self.total_bytes, total)
                next_sum = time.monotonic() + SUM_INTERVAL_S

    def _is_marked(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


def _read_kilobytes(pid: int, file: str, key: str) -> int:
    """Return a figure of a process in bytes; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in text.splitlines() if line.startswith(key))
    return next((int(words[1]) * 1024 for words in lines), 0)
