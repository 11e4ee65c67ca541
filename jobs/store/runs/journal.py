"""A journal: JSON lines that one process appends and others follow while it does.

Appended lines survive the death of the process. They are not forced to the disk one by one, so the
death of the machine may cost the last ones: what a run needs to go on is in its checkpoints.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.errors import StoreError


class Journal:
    """One file of JSON lines. Holds nothing open, so it may be pickled, forked and shared."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Add one line in one write, so lines of several writers never mix."""
        try:
            self._write_line(encode_event(event))
        except OSError as error:
            problem = f"{self.path}: {error.strerror or error}"
            raise StoreError(f"{problem}. Check the folder's owner and the space left.") from error

    def tail(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The whole lines from `offset` on, and the offset to ask from next time."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        return parse_events(data, offset)

    def flush(self) -> None:
        """Nothing waits: each line is written when it is appended."""

    def _write_line(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            # A writer that was killed inside a line must not spoil ours as well.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise OSError(f"{self.path} took only a part of a line")
        finally:
            os.close(descriptor)


def encode_event(event: Mapping[str, Any]) -> bytes:
    """An event as one line of JSON."""
    return (
        json.dumps(_replace_non_finite(event), separators=(",", ":"), allow_nan=False).encode()
        + b"\n"
    )


def parse_events(data: bytes, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The events in what was read at `offset`, and the offset behind the last whole line."""
    # What follows the last newline is still being written: it is read next time.
    complete = data[: data.rfind(b"\n") + 1]
    events = (_parse_event(line) for line in complete.splitlines())
    return [event for event in events if event is not None], offset + len(complete)


def _replace_non_finite(value: Any) -> Any:
    """The value as JSON knows it: no NaN and no infinity, which become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(item) for item in value]
    return value


def _parse_event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None  # the torn line of a writer that was killed
    return event if isinstance(event, dict) else None
