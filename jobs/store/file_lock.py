"""Take a lock on a file within a time, and say what is waited for."""

from __future__ import annotations

import fcntl
import logging
import random
import time
from typing import IO

from jobs.errors import StoreError

NOTICE_S = 5.0
"""Seconds of silence before a line says what is waited for."""
MAX_PAUSE_S = 0.5

log = logging.getLogger(__name__)


def take_lock(
    file: IO[bytes],
    *,
    purpose: str,
    timeout_s: float,
    shared: bool = False,
    notice_s: float = NOTICE_S,
) -> None:
    """Lock the file for this process, once no other one holds it. Raise StoreError after the time.

    `purpose` says what the other process does. The system releases the lock of a process that dies.
    """
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    start, is_announced, pause_s = time.monotonic(), False, 0.001
    while True:
        try:
            fcntl.flock(file, mode)
            return
        except BlockingIOError:
            waited_s = time.monotonic() - start
        if waited_s >= timeout_s:
            raise StoreError(
                f"{file.name}: another process held it for {timeout_s:.0f} s: {purpose}. See what "
                "that process does (`fuser` names it), end it if it hangs, and try again."
            )
        if waited_s >= notice_s and not is_announced:
            log.warning("Waiting for another process: %s (at most %.0f s).", purpose, timeout_s)
            is_announced = True
        # Random, so that several processes do not meet again.
        time.sleep(random.uniform(pause_s / 2, pause_s))
        pause_s = min(2 * pause_s, MAX_PAUSE_S, 0.001 + waited_s / 10)
