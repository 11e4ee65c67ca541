"""Memory that this node has left, its container's limit included. No Ray."""

from __future__ import annotations

from pathlib import Path

from jobs.plan.estimate.machine import read_local_memory

RESERVED_SHARE = 0.08
"""Share of a node's memory below which idle workers leave it to the runs. Below 5 % Ray kills
processes, those of runs too."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def is_memory_short() -> bool:
    """Return whether less than RESERVED_SHARE of this node's memory is available."""
    return read_available_memory() < RESERVED_SHARE * read_local_memory()


def read_available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Return the bytes that processes here can still get; caches of files count as available."""
    available = int(_read_fields(meminfo)["MemAvailable:"]) * 1024
    limit, current = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and current.is_file() and (text := limit.read_text().strip()).isdigit():
        caches = int(_read_fields(cgroup / "memory.stat").get("file", "0"))
        available = min(available, int(text) - int(current.read_text()) + caches)
    return available


def _read_fields(path: Path) -> dict[str, str]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: words[1] for words in lines if len(words) > 1}
