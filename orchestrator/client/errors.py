"""What can go wrong between a client and the service, and the exit code that tells it apart.

What the service says of its own things is told in its words, which name the way out.

ClientError                  1
├── Refused (InputError)     2  the service found faults in what was asked, all of them told
├── NotThere                 2  no such run, adapter, schedule, project, token for this bearer
├── Conflict                 1  somebody else changed it, or it is not in a state for that
├── NotAllowed               3  the token is missing, unknown, expired, or allows too little
├── ServiceFailed            1  a mistake of the service's own
├── NotUnderstood            3  what answers is no slora service, or one of another version
└── ServiceUnreachable       3  (Unreachable) nothing answers, or it asks to come back later
"""

from __future__ import annotations

from jobs.errors import InputError, JobsError, Unreachable


class ClientError(JobsError):
    """The base: the service did not do what was asked."""


class RequestRejected(ClientError, InputError):
    """What was asked is wrong; carries every fault."""

    exit_code = 2


class MissingResource(ClientError):
    """What is not there, or is not this token's to see."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Conflict(ClientError):
    """It is not as it was when it was read, or its state does not allow this."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class AccessDenied(ClientError):
    """The token does not open this door."""

    exit_code = 3

    def __init__(self, url: str, reason: str, source: str | None) -> None:
        super().__init__(url, reason, source)
        self.url, self.reason, self.source = url, reason, source

    def __str__(self) -> str:
        if self.source is None:
            remedy = "No token was found: set SLORA_TOKEN_FILE, or write ~/.config/slora/token."
        else:
            remedy = f"The token is the one of {self.source}: use another, or ask for one."
        return f"{self.url}: {self.reason.rstrip('.')}. {remedy}"


class ServiceError(ClientError):
    """The service answers that it failed."""

    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(url, status, reason)
        self.url, self.status, self.reason = url, status, reason

    def __str__(self) -> str:
        detail = f" ({self.reason.rstrip('.')})" if self.reason else ""
        return f"{self.url}: failed with {self.status}{detail}. Its log tells why; try again later."


class UnexpectedResponse(ClientError):
    """Something answers, and it does not speak as the service does."""

    exit_code = 3

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        remedy = "Is it a slora service, and of this version?"
        return f"{self.url}: {self.reason.rstrip('.')}. {remedy}"


class ServiceUnreachable(ClientError, Unreachable):
    """Nothing that answers, for as long as was waited."""

    exit_code = 3

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        remedy = "Start it with `slora serve`, or name another with --service or SLORA_SERVICE."
        return f"{self.url}: does not answer ({self.reason.rstrip('.')}). {remedy}"
