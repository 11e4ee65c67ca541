"""A journal in a file: JSON lines that processes append and others follow.

Appended lines survive the death of the process. They are not synced one by one, so the death of
the machine may lose the last ones. A run resumes from its checkpoints, not from a journal.
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
    """A file of JSON lines. Keeps no file open, so it can be pickled, forked and shared."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Append a line in a single write, so that lines of several writers never mix."""
        try:
            self._write_line(encode_event(event))
        except OSError as error:
            problem = f"{self.path}: {error.strerror or error}"
            raise StoreError(
                f"{problem}. Check the owner of the folder and the free space."
            ) from error

    def tail(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the events of all complete lines from `offset` on, and the next offset."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        return parse_events(data, offset)

    def flush(self) -> None:
        """Do nothing: `append` writes each line at once."""

    def _write_line(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            # Start a new line if a writer was killed inside the last one.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise OSError(f"only a part of a line was written to {self.path}")
        finally:
            os.close(descriptor)


def encode_event(event: Mapping[str, Any]) -> bytes:
    """Return an event as a line of JSON."""
    text = json.dumps(_replace_non_finite(event), separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def parse_events(data: bytes, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the events in data read at `offset`, and the offset after the last complete line."""
    # The bytes after the last newline are still being written: the next call reads them.
    complete = data[: data.rfind(b"\n") + 1]
    events = (_parse_event(line) for line in complete.splitlines())
    return [event for event in events if event is not None], offset + len(complete)


def _replace_non_finite(value: Any) -> Any:
    """Return the value with null for NaN and infinity, which JSON lacks."""
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
        return None  # the incomplete line of a killed writer
    return event if isinstance(event, dict) else None
