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


LISTED = {
    "adapter": "slora adapters list",
    "project": "slora projects list",
    "run": "slora runs",
    "schedule": "slora schedule list",
    "token": "slora tokens list",
}
"""What shows those that there are."""


class Unknown(RegistryError):
    """What was asked for is not in the registry."""

    exit_code = 2

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"The {self.kind} {self.name[:200]!a} is not in the registry. {self._remedy}"

    @property
    def _remedy(self) -> str:
        return f"See {LISTED[self.kind]}." if self.kind in LISTED else "Look at the list."


class Taken(RegistryError):
    """Something else has this name already."""

    exit_code = 2

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"The {self.kind} {self.name[:200]!a} is in the registry already. Use another name."


class LostUpdate(RegistryError):
    """Somebody else changed the row since it was read; nothing was written."""

    def __init__(self, what: str, read: int, found: int) -> None:
        super().__init__(what, read, found)
        self.what, self.read, self.found = what, read, found

    def __str__(self) -> str:
        versions = f"version {self.read} was read, version {self.found} is there"
        return f"{self.what}: {versions}. Nothing was written: read it again, then decide."


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


class Held(RegistryError):
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
        lost = f"{self.holder} no longer holds it under number {self.fence}"
        return f"lease {self.name}: {lost}. Nothing was written: acquire it again."


class ForbiddenMove(RegistryError):
    """The lifecycle does not know this move."""

    exit_code = 2

    def __init__(self, status: str, to: str, allowed: tuple[str, ...]) -> None:
        super().__init__(status, to, allowed)
        self.status, self.to, self.allowed = status, to, allowed

    def __str__(self) -> str:
        ways = f"It may become {', '.join(self.allowed)}" if self.allowed else "It is over"
        return f"A run that is {self.status} can't become {self.to}. {ways}."


class WrongSchema(RegistryError):
    """The tables are not those that this program knows."""

    exit_code = 2

    def __init__(self, database: str, found: str | None, wanted: str) -> None:
        super().__init__(database, found, wanted)
        self.database, self.found, self.wanted = database, found, wanted

    def __str__(self) -> str:
        found = f"its tables are at {self.found}" if self.found else "it has no tables"
        remedy = "Run `slora registry upgrade`; if it was upgraded by a newer slora, install that."
        return f"{self.database}: {found}, this slora needs {self.wanted}. {remedy}"


class Damaged(RegistryError):
    """The database refused a row: a rule of its own would be broken."""

    def __init__(self, database: str, why: str) -> None:
        super().__init__(database, why)
        self.database, self.why = database, why

    def __str__(self) -> str:
        return f"{self.database}: refused ({self.why}). Nothing was written."


class DatabaseUnreachable(RegistryError):
    """No connection, or no answer in time."""

    exit_code = 3

    def __init__(self, database: str, why: str) -> None:
        super().__init__(database, why)
        self.database, self.why = database, why

    def __str__(self) -> str:
        return f"{self.database}: does not answer ({self.why}). Check the URL and the server."
