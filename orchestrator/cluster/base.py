"""The door to a cluster: submit, look, stop, read the log. Knows no run, no registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

MAX_LOG_BYTES = 1 << 20
"""Bytes of a job's log in one answer; who wants more asks again from behind them."""


class JobState(StrEnum):
    """What a cluster that answers says of a job."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    ABSENT = "absent"
    """It does not know the job."""


@dataclass(frozen=True)
class JobStatus:
    """One look at a job."""

    state: JobState
    exit_code: int | None = None
    message: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """As it was given with the job."""


@dataclass(frozen=True)
class Job:
    """What is submitted: a module of ours and its words, under an id that makes it one."""

    submission: str
    module: str
    arguments: tuple[str, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Capacity:
    """What the whole cluster has."""

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    nodes: int
    node_memory: int | None
    """Bytes of the largest node; None where it is not told."""


class Cluster(Protocol):
    """A Ray cluster by its name. Every question ends within some seconds."""

    name: str

    def submit(self, job: Job) -> None:
        """Start the job; the same submission id again changes nothing.

        Raises ClusterRefused, or ClusterUnreachable: it may or may not have arrived.
        """
        ...

    def get_status(self, submission: str) -> JobStatus:
        """The job now. Raises ClusterUnreachable."""
        ...

    def list_jobs(self) -> dict[str, JobStatus]:
        """Every job that the cluster knows, by its submission id. Raises ClusterUnreachable."""
        ...

    def stop(self, submission: str) -> None:
        """Ask the job to end; one that is over, or absent, is no error."""
        ...

    def read_log(self, submission: str, start: int = 0) -> bytes:
        """The job's log from a byte on, at most LONGEST_LOG; empty where there is none.

        Raises ClusterUnreachable.
        """
        ...

    def get_capacity(self) -> Capacity:
        """What the cluster has. Raises ClusterUnreachable."""
        ...

    def close(self) -> None:
        """Ends the connections."""
        ...
