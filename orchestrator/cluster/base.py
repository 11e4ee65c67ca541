"""Interface of a cluster: submit a job, get its status, stop it, read its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

MAX_LOG_BYTES = 1 << 20
"""Bytes of a job's log in one read; a caller reads the rest from the next offset."""


class JobState(StrEnum):
    """State of a job on a cluster that answers."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    ABSENT = "absent"
    """The cluster does not know the job."""


@dataclass(frozen=True)
class JobStatus:
    """Status of a job at one moment."""

    state: JobState
    exit_code: int | None = None
    message: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata that was submitted with the job."""


@dataclass(frozen=True)
class Job:
    """A job to submit: one of our modules and its arguments, with an id that makes it unique."""

    submission: str
    module: str
    arguments: tuple[str, ...]
    metadata: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables of its processes. May hold credentials of the job's project, so never log it."""


@dataclass(frozen=True)
class Capacity:
    """Resources of a whole cluster."""

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    nodes: int
    node_memory: int | None
    """Bytes of memory of the largest node; None if unknown."""


class Cluster(Protocol):
    """A named Ray cluster. Every call returns within some seconds."""

    name: str

    def submit(self, job: Job) -> None:
        """Start the job. A repeated submission id changes nothing.

        Raise ClusterRefused, or ClusterUnreachable: then the job may or may not have started.
        """

    def get_status(self, submission: str) -> JobStatus:
        """Return the status of the job. Raise ClusterUnreachable."""

    def list_jobs(self) -> dict[str, JobStatus]:
        """Return the status of every job, by submission id. Raise ClusterUnreachable."""

    def stop(self, submission: str) -> None:
        """Request the end of the job. It is no error if the job has ended or is absent."""

    def read_log(self, submission: str, start: int = 0) -> bytes:
        """Return at most MAX_LOG_BYTES of the job's log from a byte on; empty if there are none.

        Raise ClusterUnreachable.
        """

    def get_capacity(self) -> Capacity:
        """Return the resources of the cluster. Raise ClusterUnreachable."""

    def close(self) -> None:
        """Close the connections."""
