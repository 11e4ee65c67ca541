"""Errors of a cluster.

JobsError
├── ClusterRefused            1  the cluster rejects the job
└── Unreachable
    └── ClusterUnreachable    3  no valid answer; the outcome of a request is unknown
"""

from __future__ import annotations

from jobs.errors import JobsError, Unreachable


class ClusterRefused(JobsError):
    """The cluster rejects the job."""

    def __init__(self, cluster: str, reason: str) -> None:
        super().__init__(cluster, reason)
        self.cluster, self.reason = cluster, reason

    def __str__(self) -> str:
        reason = self.reason.rstrip(".")
        return f"cluster {self.cluster} rejects the job: {reason}. Fix it and submit again."


class ClusterUnreachable(Unreachable):
    """The cluster gives no valid answer."""

    def __init__(self, cluster: str, reason: str) -> None:
        super().__init__(cluster, reason)
        self.cluster, self.reason = cluster, reason

    def __str__(self) -> str:
        remedy = "Check its address, and the token in the configured file."
        return f"cluster {self.cluster} does not answer: {self.reason.rstrip('.')}. {remedy}"
