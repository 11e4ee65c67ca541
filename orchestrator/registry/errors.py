"""What can go wrong with the registry, and the exit code that tells it apart.

RegistryError            1
├── Unknown              2  no such run, lease, schedule, project
├── Taken                2  the name or the id is in use
├── LostUpdate           1  a guarded update met another version of the row than was read
├── StaleAttempt         1  an old attempt spoke for a run that a later one took over
├── Held                 1  somebody else holds the lease that this needs
├── LeaseLost            1  a lease lapsed, or somebody else took it
├── ForbiddenMove        2  the lifecycle has no such move
├── WrongSchema          2  the database is of another version of this program
├── Damaged              1  what was to be written breaks a rule of the database
└── DatabaseUnreachable  3  the database does not answer, or is locked for too long
"""

from __future__ import annotations

from jobs.errors import JobsError


class RegistryError(JobsError):
    """The base: the registry can't do what was asked."""


LIST_COMMANDS = {
    "adapter": "slora adapters list",
    "project": "slora projects list",
    "run": "slora runs",
    "schedule": "slora schedules list",
    "token": "slora tokens list",
}
"""What shows those that there are."""


class UnknownItem(RegistryError):
    """What was asked for is not in the registry."""

    exit_code = 2

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"The {self.kind} {self.name[:200]!a} is not in the registry. {self._remedy}"

    @property
    def _remedy(self) -> str:
        return (
            f"See {LIST_COMMANDS[self.kind]}."
            if self.kind in LIST_COMMANDS
            else "Look at the list."
        )


class DuplicateKey(RegistryError):
    """Something else has this name already."""

    exit_code = 2

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"The {self.kind} {self.name[:200]!a} is in the registry already. Use another name."


class LostUpdate(RegistryError):
    """Somebody else changed the row since it was read; nothing was written."""

    def __init__(self, subject: str, read_version: int, current_version: int) -> None:
        super().__init__(subject, read_version, current_version)
        self.subject, self.read_version, self.current_version = (
            subject,
            read_version,
            current_version,
        )

    def __str__(self) -> str:
        versions = f"version {self.read_version} was read, version {self.current_version} is there"
        return f"{self.subject}: {versions}. Nothing was written: read it again, then decide."


class StaleAttempt(RegistryError):
    """An attempt that was replaced can't speak for its run any more."""

    def __init__(self, run: str, attempt: int, current: int) -> None:
        super().__init__(run, attempt, current)
        self.run, self.attempt, self.current = run, attempt, current

    def __str__(self) -> str:
        return (
            f"{self.run}: attempt {self.attempt} is not the current one, which is {self.current}. "
            "Nothing was written: this attempt may end."
        )


class LeaseHeld(RegistryError):
    """The lease is somebody else's for now."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"lease {self.name}: somebody else is at it. Wait until it ends, then try again."


class LeaseLost(RegistryError):
    """The lease lapsed or is somebody else's; what hung on it was not written."""

    def __init__(self, name: str, holder: str, fence: int) -> None:
        super().__init__(name, holder, fence)
        self.name, self.holder, self.fence = name, holder, fence

    def __str__(self) -> str:
        problem = f"{self.holder} no longer holds it under number {self.fence}"
        return f"lease {self.name}: {problem}. Nothing was written: acquire it again."


class ForbiddenMove(RegistryError):
    """The lifecycle does not know this move."""

    exit_code = 2

    def __init__(self, status: str, target: str, allowed: tuple[str, ...]) -> None:
        super().__init__(status, target, allowed)
        self.status, self.target, self.allowed = status, target, allowed

    def __str__(self) -> str:
        options = f"It may become {', '.join(self.allowed)}" if self.allowed else "It is over"
        return f"A run that is {self.status} can't become {self.target}. {options}."


class WrongSchema(RegistryError):
    """The tables are not those that this program knows."""

    exit_code = 2

    def __init__(self, database: str, revision: str | None, required: str) -> None:
        super().__init__(database, revision, required)
        self.database, self.revision, self.required = database, revision, required

    def __str__(self) -> str:
        state = f"its tables are at {self.revision}" if self.revision else "it has no tables"
        remedy = "Run `slora registry upgrade`; if it was upgraded by a newer slora, install that."
        return f"{self.database}: {state}, this slora needs {self.required}. {remedy}"


class DatabaseRefused(RegistryError):
    """The database refused a row: a rule of its own would be broken."""

    def __init__(self, database: str, message: str) -> None:
        super().__init__(database, message)
        self.database, self.message = database, message

    def __str__(self) -> str:
        return f"{self.database}: refused ({self.message}). Nothing was written."


class DatabaseUnreachable(RegistryError):
    """No connection, or no answer in time."""

    exit_code = 3

    def __init__(self, database: str, message: str) -> None:
        super().__init__(database, message)
        self.database, self.message = database, message

    def __str__(self) -> str:
        return f"{self.database}: does not answer ({self.message}). Check the URL and the server."
