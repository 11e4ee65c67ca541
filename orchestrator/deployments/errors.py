"""Errors of deployments.

JobsError
├── TargetRefused             1  the server refuses a request, and says why
├── NoEarlierVersion          2  a deployment has nothing to roll back to
└── Unreachable
    └── TargetUnreachable     3  no valid answer; the outcome of a request is unknown
        └── VersionNotSeen    3  a replica has not found the files of a version yet
"""

from __future__ import annotations

from jobs.errors import JobsError, Unreachable


class TargetRefused(JobsError):
    """The server refuses a request."""

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(endpoint, reason)
        self.endpoint, self.reason = endpoint, reason

    def __str__(self) -> str:
        return f"The endpoint {self.endpoint} refuses: {self.reason.rstrip('.')}."


class NoEarlierVersion(JobsError):
    """A deployment has no earlier version that is loaded."""

    exit_code = 2

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"The deployment {self.name} has no earlier version to return to. "
            f"Deploy one: slora deploy {self.name}@v1."
        )


class TargetUnreachable(Unreachable):
    """The server gives no valid answer."""

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(endpoint, reason)
        self.endpoint, self.reason = endpoint, reason

    def __str__(self) -> str:
        remedy = "Check its address and its API key."
        return f"The endpoint {self.endpoint} does not answer: {self.reason.rstrip('.')}. {remedy}"


class VersionNotSeen(TargetUnreachable):
    """A replica of Ray Serve LLM finds no files of a version."""

    def __init__(self, endpoint: str, model: str) -> None:
        super().__init__(endpoint, model)
        self.model = model

    def __str__(self) -> str:
        return (
            f"The endpoint {self.endpoint} does not find {self.model} yet: a replica that was "
            "asked for it too early looks again after 30 s. If this stays, compare the "
            "loading_path of the endpoint with the application's dynamic_lora_loading_path."
        )
