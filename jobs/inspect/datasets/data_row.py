"""A row of a file, and how readers report what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault, InputError

MAX_LINE_BYTES = 64 * 2**20
"""A longer line or value is a sign of another kind of file, or of a file without line ends."""

COPY_AGAIN = "Write or copy the file again."
UNREAD = "Fix this error: the rest of the file was not read."

FaultHandler = Callable[[Fault], None]
ChunkHandler = Callable[[memoryview], None]


@dataclass(frozen=True)
class Row:
    """A row of a file, with its file and line."""

    values: dict[str, Any]
    file: str
    line: int
    warning: str = ""
    """What may be wrong with the row, although it could be read."""

    @property
    def location(self) -> str:
        """The file and line, as messages name the row."""
        return f"{self.file}:{self.line}"


def raise_fault(fault: Fault) -> None:
    """Raise InputError with this fault: the handler where faults are not collected."""
    raise InputError([fault])


def make_type_fault(location: str, value: Any) -> Fault:
    """Return the fault that a JSON value is not a row."""
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    problem = f"the row is {names.get(type(value), 'a number')}, not an object"
    return Fault(location, problem, 'Write an object, for example {"text": "..."}.')
