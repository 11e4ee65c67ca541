"""The `cluster` section: the workers of a run on Ray, and the machines that they share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.spec.limits import NAME_PATTERN, Positive, Retries, Steps, TimeoutSeconds, Workers
from jobs.spec.strict_model import StrictModel


class WorkerRange(StrictModel):
    """Minimum and maximum number of workers of an elastic run."""

    min: Workers
    max: Workers


class MachineSection(StrictModel):
    """The machines that the run is meant for, which the plan cannot inspect."""

    kind: str | None = Field(default=None, pattern=NAME_PATTERN, max_length=63)
    """A name for these machines: the plan uses the speed of past runs with the same name."""
    workers_per_node: Workers | None = None
    """Workers on one machine; by default all of them."""
    memory_gb: Positive | None = None
    """Memory of one worker in GB (10^9 bytes): its GPU's, or its share of the machine's."""
    tokens_per_second: Positive | None = None
    """Speed of all workers together; by default that of comparable past runs."""
    price_per_hour: Positive | None = None
    """Price of one machine, in any currency."""


class ClusterSection(StrictModel):
    """Resources of the run on Ray, and the sharding of the base."""

    workers: Workers | WorkerRange = 1
    cpus_per_worker: Workers = 1
    gpus_per_worker: Literal[0, 1] = 0
    sharding: Literal["replicate", "node", "cluster", "auto"] = "auto"
    """replicate: ZeRO-1 over the adapter; node: base sharded inside a machine; cluster: ZeRO-3."""
    sync_every: Steps = 1
    """Optimizer steps between exchanges; above 1, workers train alone in between."""
    outer: Literal["average", "nesterov"] = "average"
    """Combination of local steps: their mean, or DiLoCo's Nesterov step along it."""
    average: Literal["factors", "product"] = "factors"
    """Averaging of LoRA after local steps: A and B apart, or B A, factorised again."""
    exchange_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the gradients that workers exchange."""
    max_failures: Retries = 3
    """Restarts from a checkpoint after a worker or a machine was lost."""
    max_crashes: Retries = 0
    """Restarts after an error in the code, which usually occurs again."""
    timeout: TimeoutSeconds = 600
    """Seconds that workers wait for one another before the run ends and names the late ones."""
    machine: MachineSection = MachineSection()
