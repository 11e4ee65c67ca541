"""Errors of the registry, each with its exit code.

RegistryError                1
├── ItemError                2
│   ├── UnknownItem          2  no such run, lease, schedule or project
│   └── DuplicateKey         2  the name or id is in use
├── QuotaExceeded (InputError)  2  a limit of the project refuses it
├── LostUpdate               1  the row was changed after it was read
├── NameTaken                2  another project owns the name of an adapter
├── VersionJumped            2  the number of a version does not follow the newest one
├── LeaseHeld                1  another process holds the lease
├── LeaseLost                1  the lease expired, or another process acquired it
├── ForbiddenMove            2  the lifecycle does not allow this move
├── RunInUse                 2  the run cannot be deleted yet
├── WrongSchema              2  the schema belongs to another version of slora
├── BackupFailed             1  a database could not be copied to or from a file
└── DatabaseFailed           1
    ├── DatabaseRefused      1  a row violates a constraint of the database
    └── DatabaseUnreachable  3  the database does not answer, or is locked for too long
"""

from __future__ import annotations

from jobs.errors import InputError, JobsError


class RegistryError(JobsError):
    """Base class of all errors of the registry."""


LIST_COMMANDS = {
    "adapter": "slora adapters list",
    "deployment": "slora deployments list",
    "project": "slora projects list",
    "run": "slora runs",
    "quarantined job": "slora registry quarantine list",
    "quarantined run": "slora registry quarantine list",
    "quarantined schedule": "slora registry quarantine list",
    "schedule": "slora schedules list",
    "token": "slora tokens list",
}
"""The command that lists the items of a kind."""


class ItemError(RegistryError):
    """Base class: a request names an item of a kind that it must not name."""

    exit_code = 2

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name


class UnknownItem(ItemError):
    """The registry has no item of this name."""

    def __str__(self) -> str:
        return f"The {self.kind} {self.name[:200]!a} is not in the registry.{self._remedy}"

    @property
    def _remedy(self) -> str:
        command = LIST_COMMANDS.get(self.kind)
        return f" Run `{command}` to list what exists." if command else ""


class DuplicateKey(ItemError):
    """Another item has this name or id."""

    def __str__(self) -> str:
        return f"The {self.kind} {self.name[:200]!a} already exists. Use another name."


class QuotaExceeded(RegistryError, InputError):
    """A limit of the project refuses the request; carries all such limits."""

    exit_code = 2


class LostUpdate(RegistryError):
    """The row was changed after it was read, and nothing was written."""

    def __init__(self, subject: str, read_version: int, current_version: int) -> None:
        super().__init__(subject, read_version, current_version)
        self.subject, self.read_version = subject, read_version
        self.current_version = current_version

    def __str__(self) -> str:
        return (
            f"{self.subject} was changed meanwhile: it is at version {self.current_version}, not "
            f"{self.read_version}. Nothing was written. Read it again and retry."
        )


class NameTaken(RegistryError):
    """The name of an adapter is another project's. The message does not tell whose."""

    exit_code = 2

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"The adapter name {self.name[:63]!a} is in use in this store. Use another name."


class VersionJumped(RegistryError):
    """The number of a new version is far above the newest one: no commit has counted up to it."""

    exit_code = 2

    def __init__(self, label: str, newest: int) -> None:
        super().__init__(label, newest)
        self.label, self.newest = label, newest

    def __str__(self) -> str:
        newest = f"v{self.newest} is the newest version" if self.newest else "it has no version"
        return f"{self.label} is not recorded: its number jumps, {newest}. Delete its folder."


class LeaseHeld(RegistryError):
    """Another process holds the lease."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"Another process holds the lease {self.name}. Wait until it is done and retry."


class LeaseLost(RegistryError):
    """The lease expired or was acquired by another process; the write was refused."""

    def __init__(self, name: str, holder: str, fence: int) -> None:
        super().__init__(name, holder, fence)
        self.name, self.holder, self.fence = name, holder, fence

    def __str__(self) -> str:
        return (
            f"{self.holder} no longer holds the lease {self.name} under number {self.fence}. "
            "Nothing was written. Acquire the lease again."
        )


class ForbiddenMove(RegistryError):
    """The lifecycle does not allow this move."""

    exit_code = 2

    def __init__(self, status: str, target: str, allowed: tuple[str, ...]) -> None:
        super().__init__(status, target, allowed)
        self.status, self.target, self.allowed = status, target, allowed

    def __str__(self) -> str:
        options = f"It can become {', '.join(self.allowed)}" if self.allowed else "It has ended"
        return f"A run that is {self.status} cannot become {self.target}. {options}."


class RunInUse(RegistryError):
    """The run cannot be deleted yet."""

    exit_code = 2

    def __init__(self, run: str, reason: str, remedy: str) -> None:
        super().__init__(run, reason, remedy)
        self.run, self.reason, self.remedy = run, reason, remedy

    def __str__(self) -> str:
        return f"The run {self.run} cannot be deleted: {self.reason}. {self.remedy}"


class WrongSchema(RegistryError):
    """The schema of the database is not the one that this version of slora needs."""

    exit_code = 2

    def __init__(self, database: str, revision: str | None, required: str) -> None:
        super().__init__(database, revision, required)
        self.database, self.revision, self.required = database, revision, required

    def __str__(self) -> str:
        state = f"has schema {self.revision}" if self.revision else "has no tables"
        remedy = (
            "Run `slora registry upgrade`, or install the newer slora if that upgraded the database"
        )
        return f"{self.database} {state}; this slora needs schema {self.required}. {remedy}."


class BackupFailed(RegistryError):
    """A database could not be copied to a file, or from one."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} could not be copied: {self.reason}. Correct that and repeat it."


class DatabaseFailed(RegistryError):
    """Base class: the database answered with an error, or not at all."""

    def __init__(self, database: str, message: str) -> None:
        super().__init__(database, message)
        self.database, self.message = database, message


class DatabaseRefused(DatabaseFailed):
    """The database refused a row that violates one of its constraints."""

    def __str__(self) -> str:
        return f"{self.database} refused the write ({self.message}). Nothing was written."


class DatabaseUnreachable(DatabaseFailed):
    """The database cannot be connected to, or does not answer in time."""

    exit_code = 3

    def __str__(self) -> str:
        return f"{self.database} does not answer ({self.message}). Check the URL and the server."
