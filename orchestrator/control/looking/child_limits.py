"""Take rights and resources from this process before it opens a file that a user named."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

from orchestrator.control.looking.look_protocol import Account, LookLimits

NICENESS = 10
"""The service and its users come first."""
ALARM_MARGIN_S = 10
"""The service ends the process at `wall_s`. If the service itself was killed, the alarm does."""


def drop_rights(account: Account | None) -> None:
    """Become this user for good, with its group alone."""
    _prefer_when_memory_is_short()
    if account is not None:
        os.setgroups(())
        os.setresgid(account.group, account.group, account.group)
        os.setresuid(account.user, account.user, account.user)


def apply_limits(limits: LookLimits) -> None:
    """Limit memory, processor time, files and time, also of the processes that this one starts."""
    for kind, value in (
        # Not RLIMIT_AS: allocators and threads reserve addresses that they never use.
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.copy_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lowest, lowest))
    _limit_cpu(limits.cpu_s)
    signal.alarm(int(limits.wall_s) + ALARM_MARGIN_S)
    os.nice(NICENESS)


def _limit_cpu(seconds: int) -> None:
    # Where both limits are equal, the signal would be SIGKILL, which tells nothing.
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or hard > seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _prefer_when_memory_is_short() -> None:
    """Let the kernel end this process rather than the service when the machine is out of memory."""
    # Another kernel has no such file, and a container may not allow it.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
