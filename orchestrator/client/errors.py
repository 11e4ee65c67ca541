"""Errors of the client, each with its exit code.

A message of the service is shown as it is, because it contains the fix.

ClientError                       1
├── RequestRejected (InputError)  2  the request is invalid; carries all its errors
├── MissingResource               2  there is no such run, adapter, schedule, project or token
├── Conflict                      1  it has changed meanwhile, or its state does not allow this
├── AccessDenied                  3  the token is missing, unknown, expired, or lacks the scope
├── ServiceError                  1  the service has failed
├── UnexpectedResponse            3  not a slora service, or another version of it
└── ServiceUnreachable            3  (Unreachable) no answer, or a request to retry later
    └── TooManyRequests           3  refused by a limit on requests, and not executed
"""

from __future__ import annotations

from jobs.errors import InputError, JobsError, Unreachable


class ClientError(JobsError):
    """Base class: the service did not fulfill the request."""


class RequestRejected(ClientError, InputError):
    """The request is invalid; carries all its errors."""

    exit_code = 2


class MissingResource(ClientError):
    """The resource does not exist, or the token does not cover it."""

    exit_code = 2


class Conflict(ClientError):
    """The resource has changed since it was read, or its state does not allow the request."""


class AccessDenied(ClientError):
    """The token is missing or invalid, or lacks a permission."""

    exit_code = 3

    def __init__(self, url: str, reason: str, source: str | None) -> None:
        super().__init__(url, reason, source)
        self.url, self.reason, self.source = url, reason, source

    def __str__(self) -> str:
        if self.source is None:
            remedy = "There is no token: set SLORA_TOKEN_FILE, or write ~/.config/slora/token."
        else:
            remedy = f"The token comes from {self.source}: use another one."
        return f"{self.url}: {self.reason.rstrip('.')}. {remedy}"


class ServiceError(ClientError):
    """The service responded that it has failed."""

    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(url, status, reason)
        self.url, self.status, self.reason = url, status, reason

    def __str__(self) -> str:
        detail = f" ({self.reason.rstrip('.')})" if self.reason else ""
        remedy = "See the log of the service, and retry later."
        return f"{self.url}: failed with {self.status}{detail}. {remedy}"


class UnexpectedResponse(ClientError):
    """The response is not one of the service's."""

    exit_code = 3

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        remedy = "Check that this is a slora service of the same version."
        return f"{self.url}: {self.reason.rstrip('.')}. {remedy}"


class ServiceUnreachable(ClientError, Unreachable):
    """There was no answer for as long as the retries lasted."""

    exit_code = 3

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        remedy = "Start it with `slora serve`, or set --service or SLORA_SERVICE to another."
        return f"{self.url}: does not answer ({self.reason.rstrip('.')}). {remedy}"


class TooManyRequests(ServiceUnreachable):
    """The service refused the request for as long as the retries lasted, and did not execute it."""

    def __str__(self) -> str:
        return f"{self.url}: {self.reason}"
