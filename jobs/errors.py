"""What can go wrong in a job, and the exit code that tells it apart.

JobsError                 1  the run failed
├── InputError            2  the input is wrong: every fault found, reported together
├── StoreError            1
│   ├── NotFound          2  no such adapter, version or run
│   ├── AlreadyThere      1  a create-only write met an object
│   ├── Changed           1  a compare-and-swap met another object than was read
│   ├── DigestMismatch    1  the bytes are not those of the manifest
│   ├── Replaced          1  an old attempt of a run that a later one took over
│   ├── StillNeeded       2  something points to what should be removed
│   ├── UnsoundStore      2  the store does not keep what the commit protocol needs
│   ├── StoreRefused      3  the credentials are missing, wrong, expired or allow too little
│   └── StoreUnreachable  3  the store does not answer, or asks to come back later
├── TrainingFailed        1  a worker stopped: which, where, why
│   └── Stalled           1  workers waited in vain for others, which are named
├── NotInstalled          3  a package of an extra (train, service) is missing
└── Unreachable           3  the outside world is not reachable
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the input: where, what was found, and the way out."""

    key: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        tail = f" {self.remedy}" if self.remedy else ""
        return f"{self.key}: {self.problem}.{tail}"


class JobsError(Exception):
    """The base of every error that a job raises on purpose."""

    exit_code = 1


class InputError(JobsError):
    """The input is wrong. Carries every fault that was found, not only the first."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class StoreError(JobsError):
    """The store can't do what was asked."""


class NotInStore(StoreError):
    """What was asked for is not in the store."""

    exit_code = 2

    def __init__(self, subject: str, available: Sequence[str] = ()) -> None:
        super().__init__(subject, tuple(available))
        self.subject, self.available = subject, tuple(available)

    def __str__(self) -> str:
        if not self.available:
            return f"{self.subject} is not in the store, which is empty of its kind."
        return f"{self.subject} is not in the store. There is: {', '.join(self.available)}."


class AlreadyExists(StoreError):
    """A create-only write met an object under its key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: already written, and written once only. Use the next version."


class WriteConflict(StoreError):
    """A write that was to replace one object met another, or none."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: changed by somebody else since it was read. Look again, then retry."


class DigestMismatch(StoreError):
    """The bytes under a key are not those that the manifest names."""

    def __init__(self, key: str, expected: str, actual: str) -> None:
        super().__init__(key, expected, actual)
        self.key, self.expected, self.actual = key, expected, actual

    def __str__(self) -> str:
        mismatch = f"the manifest says {self.expected[:12]}, the bytes are {self.actual[:12]}"
        return f"{self.key}: {mismatch}. The file was changed or cut short: pull another version."


class SupersededAttempt(StoreError):
    """An old attempt that woke up again: a later one of the same run has committed."""


class StillReferenced(StoreError):
    """What should be removed is what something else points to."""

    exit_code = 2

    def __init__(self, subject: str, references: Sequence[str]) -> None:
        super().__init__(subject, tuple(references))
        self.subject, self.references = subject, tuple(references)

    def __str__(self) -> str:
        names = ", ".join(self.references)
        return f"{self.subject} is not removed: {names} points to it. Move or remove that first."


class UnsupportedStore(StoreError):
    """The store answers, and does not keep what the commit protocol needs."""

    exit_code = 2

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return (
            f"{self.url}: {self.reason}. Adapters could be overwritten there, so nothing was "
            "written. Use a store that honours If-Match and If-None-Match, or a folder."
        )


class StoreRefused(StoreError):
    """The store knows us not, or does not allow it."""

    exit_code = 3


class StoreUnreachable(StoreError):
    """The store does not answer, or answers that it can't now."""

    exit_code = 3


class TrainingFailed(JobsError):
    """A worker stopped. One message: where it was, what it met, and the way out."""

    def __init__(self, source: str, reason: str, remedy: str = "") -> None:
        super().__init__(source, reason, remedy)
        self.source, self.reason, self.remedy = source, reason, remedy

    def __str__(self) -> str:
        tail = f" {self.remedy}" if self.remedy else ""
        return f"{self.source}: {self.reason}.{tail}"


class TrainingStalled(TrainingFailed):
    """Workers waited for others until the time-out: a hang, and most often a lost machine."""


class NotInstalled(JobsError):
    """The control plane stands alone here: what trains, or what serves, is not installed."""

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
