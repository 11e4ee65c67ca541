"""Wait for a condition that no event announces: read it again, up to a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_for(read: Callable[[], Value | None], *, timeout_s: float, pause_s: float = 0.1) -> Value:
    """Return the first value of `read` that is not None. Raise AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while (value := read()) is None:
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        threading.Event().wait(pause_s)
    return value
