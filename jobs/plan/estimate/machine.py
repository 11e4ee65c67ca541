"""The machines of a run: as the spec describes them, or this one for a run on CPUs."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.plan.estimate.inputs import Resources
from jobs.spec.schema import RunSpec

GB = 1_000_000_000
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def describe_resources(spec: RunSpec, *, local_memory: int | None = None) -> Resources:
    """Describe the workers and their machines. `local_memory` (bytes) is read by default."""
    machine, workers = spec.cluster.machine, spec.workers
    per_node = min(machine.workers_per_node or workers, workers)
    cpu = spec.cluster.gpus_per_worker == 0
    memory, source = None, ""
    if machine.memory_gb is not None:
        memory, source = round(machine.memory_gb * GB), "of cluster.machine.memory_gb"
    elif cpu:
        memory = (local_memory if local_memory is not None else read_local_memory()) // per_node
        source = "of this machine's memory"
    return Resources(workers, per_node, cpu, memory, source, machine.price_per_hour)


def read_local_memory() -> int:
    """Return the bytes of memory of this machine, or of its container's limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (path.read_text().strip() for path in CGROUP_LIMITS if path.is_file())
    return min([physical, *(int(limit) for limit in limits if limit.isdigit())])
