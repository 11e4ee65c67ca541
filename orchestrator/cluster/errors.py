"""What can go wrong with a cluster.

JobsError
├── ClusterRefused            1  the cluster answers, and says no
└── Unreachable
    └── ClusterUnreachable    3  nothing is known of it, nor of what was asked
"""

from __future__ import annotations

from jobs.errors import JobsError, Unreachable


class ClusterRefused(JobsError):
    """The cluster will not have it."""

    def __init__(self, cluster: str, reason: str) -> None:
        super().__init__(cluster, reason)
        self.cluster, self.reason = cluster, reason

    def __str__(self) -> str:
        return (
            f"cluster {self.cluster} refuses: {self.reason.rstrip('.')}. Mend it and submit again."
        )


class ClusterUnreachable(Unreachable):
    """No answer that can be believed."""

    def __init__(self, cluster: str, reason: str) -> None:
        super().__init__(cluster, reason)
        self.cluster, self.reason = cluster, reason

    def __str__(self) -> str:
        remedy = "Check its address, and that its token is the one in the configured file."
        return f"cluster {self.cluster} does not answer: {self.reason.rstrip('.')}. {remedy}"
