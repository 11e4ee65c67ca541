"""The errors of jobs, and their exit codes.

JobsError                 1  the run failed
├── InputError            2  the input is invalid; all faults are reported together
│   └── TemplateRejection 2  the chat template fails on a row, or leaves out its content
├── StoreError            1
│   ├── NotInStore        2  no such adapter, version or run
│   ├── AlreadyExists     1  a create-only write found an existing object
│   ├── WriteConflict     1  a compare-and-swap found another object than was read
│   ├── DigestMismatch    1  the bytes do not match the manifest
│   ├── Untrusted         1  the trust policy refuses a version or a pointer
│   ├── SupersededAttempt 1  an old attempt of a run that a later one has taken over
│   ├── StillReferenced   2  an object that should be removed is still referenced
│   ├── UnsupportedStore  2  the store lacks a guarantee that the commit protocol needs
│   ├── StoreRefused      3  the credentials are missing, invalid, expired or insufficient
│   └── StoreUnreachable  3  the store does not answer, or asks to retry later
├── TrainingFailed        1  a worker stopped: the message says where and why
│   └── TrainingStalled   1  workers timed out waiting for others, which are named
├── ReadLimitExceeded     1  a check that may read few bytes would need more
├── NotInstalled          3  a package of an extra (train, service) is not installed
└── Unreachable           3  an outside service is not reachable
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """An error in the input: its key, the problem, and the fix."""

    key: str
    problem: str
    remedy: str = ""

    @property
    def is_of_row(self) -> bool:
        """Whether its key is a row, as FILE:LINE."""
        return self.key.rpartition(":")[2].isdigit()

    def __str__(self) -> str:
        tail = f" {self.remedy}" if self.remedy else ""
        return f"{self.key}: {self.problem}.{tail}"


class JobsError(Exception):
    """The base of every error that a job raises on purpose."""

    exit_code = 1


class InputError(JobsError):
    """The input is invalid. Carries all faults, not only the first."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class TemplateRejection(InputError):
    """The chat template fails on a row, or leaves out its content.

    `reason` is the same for all rows that the template treats alike, and `detail` is of this row.
    `fails_always` says that no row can be rendered.
    """

    def __init__(
        self, where: str, reason: str, remedy: str, *, detail: str = "", fails_always: bool = False
    ) -> None:
        super().__init__([Fault(where, f"{reason}{detail}", remedy)])
        self.reason, self.fails_always = reason, fails_always

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Fault, ...]]]:
        """Return the plain error for pickling: its reason is of use where it is raised."""
        return InputError, (self.faults,)


class StoreError(JobsError):
    """The store cannot do what was requested."""


class NotInStore(StoreError):
    """An adapter, a version or a run is not in the store."""

    exit_code = 2

    def __init__(self, subject: str, available: Sequence[str] = ()) -> None:
        super().__init__(subject, tuple(available))
        self.subject, self.available = subject, tuple(available)

    def __str__(self) -> str:
        if not self.available:
            return f"{self.subject} is not in the store, and neither is any other."
        return f"{self.subject} is not in the store. Available: {', '.join(self.available)}."


class AlreadyExists(StoreError):
    """A create-only write found an existing object under its key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: already exists and cannot be overwritten. Use the next version."


class WriteConflict(StoreError):
    """A write that should replace an object found another one, or none."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: changed by another writer since it was read. Read it again and retry."


class DigestMismatch(StoreError):
    """The bytes under a key do not match the manifest."""

    def __init__(self, key: str, expected: str, actual: str) -> None:
        super().__init__(key, expected, actual)
        self.key, self.expected, self.actual = key, expected, actual

    def __str__(self) -> str:
        mismatch = (
            f"the manifest has the digest {self.expected[:12]}, but the file has {self.actual[:12]}"
        )
        return f"{self.key}: {mismatch}. The file was changed or truncated: pull another version."


class Untrusted(StoreError):
    """The trust policy refuses a version or a pointer: its signature is missing or wrong."""

    def __init__(self, subject: str, problem: str, remedy: str) -> None:
        super().__init__(subject, problem, remedy)
        self.subject, self.problem, self.remedy = subject, problem, remedy

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}. {self.remedy}"


class SupersededAttempt(StoreError):
    """An old attempt came back after a later one of the same run had committed."""


class StillReferenced(StoreError):
    """An object that should be removed is still referenced."""

    exit_code = 2

    def __init__(self, subject: str, references: Sequence[str]) -> None:
        super().__init__(subject, tuple(references))
        self.subject, self.references = subject, tuple(references)

    def __str__(self) -> str:
        names = ", ".join(self.references)
        return (
            f"{self.subject} was not removed: it is in use by {names}. Change or remove that first."
        )


class UnsupportedStore(StoreError):
    """The store answers, but lacks a guarantee that the commit protocol needs."""

    exit_code = 2

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return (
            f"{self.url}: {self.reason}. Adapters could be overwritten, so nothing was "
            "written. Use a store that supports If-Match and If-None-Match, or a folder."
        )


class StoreRefused(StoreError):
    """The store rejects the credentials, or does not permit the operation."""

    exit_code = 3


class StoreUnreachable(StoreError):
    """The store does not answer, or is temporarily unavailable."""

    exit_code = 3


class TrainingFailed(JobsError):
    """A worker stopped. The message says where, why, and what to do."""

    def __init__(self, source: str, reason: str, remedy: str = "") -> None:
        super().__init__(source, reason, remedy)
        self.source, self.reason, self.remedy = source, reason, remedy

    def __str__(self) -> str:
        tail = f" {self.remedy}" if self.remedy else ""
        return f"{self.source}: {self.reason}.{tail}"


class TrainingStalled(TrainingFailed):
    """Workers timed out waiting for others: a hang, usually because of a lost machine."""


class ReadLimitExceeded(JobsError):
    """A check that may read a limited number of bytes would need more: nothing is known to be
    wrong.
    """


class NotInstalled(JobsError):
    """The package of an extra is missing: training or serving is not installed here."""

    exit_code = 3

    def __init__(self, package: str, extra: str = "train") -> None:
        super().__init__(package, extra)
        self.package, self.extra = package, extra

    def __str__(self) -> str:
        remedy = f"Install the extra: pip install '.[{self.extra}]'."
        return f"{self.package} is not installed here. {remedy}"


class Unreachable(JobsError):
    """Ray or another outside service does not answer."""

    exit_code = 3
