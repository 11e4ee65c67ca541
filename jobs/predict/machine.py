"""The machines of a run: as the spec names them, and for a run on CPUs this one."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.predict.question import Place
from jobs.spec import Spec

GB = 1_000_000_000
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def place_of(spec: Spec, *, here: int | None = None) -> Place:
    """Where the workers are. `here` are the bytes of this machine, looked up where not given."""
    machine, workers = spec.cluster.machine, spec.workers
    per_node = min(machine.workers_per_node or workers, workers)
    cpu = spec.cluster.gpus_per_worker == 0
    memory, source = None, ""
    if machine.memory_gb is not None:
        memory, source = round(machine.memory_gb * GB), "of cluster.machine.memory_gb"
    elif cpu:
        memory = (here if here is not None else memory_here()) // per_node
        source = "of this machine's memory"
    return Place(workers, per_node, cpu, memory, source, machine.price_per_hour)


def memory_here() -> int:
    """Bytes that this machine has, or that its container may use."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (path.read_text().strip() for path in CGROUP_LIMITS if path.is_file())
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])
