"""Tails: the events or the log of one run, polled once for all its followers.

A tail polls in a thread, without changing itself, and applies the update on the event loop, where
its followers read: no follower ever sees a partial update.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator.cluster.base import Cluster
from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import FINAL
from orchestrator.registry.values import Attempt, Event, Run

MAX_BUFFERED_BYTES = 4 << 20
"""Bytes of an attempt's log that are buffered; a follower that is further behind reads alone."""
FULL_READ_BYTES = 1 << 16
"""Bytes in one read that mean that the log probably continues."""

Update = TypeVar("Update")


@dataclass(frozen=True)
class TailSources:
    """The sources that tails poll."""

    database: Database
    clusters: Mapping[str, Cluster]

    def read_log(self, attempt: Attempt, start: int) -> bytes:
        """Read an attempt's log from a byte on. Raise ClusterUnreachable if that fails."""
        cluster = self.clusters.get(attempt.cluster)
        # The cluster may no longer be configured, or never have been known.
        return b"" if cluster is None else cluster.read_log(attempt.submission, start)


class Tail(Generic[Update]):
    """A run that is polled for all its followers."""

    def __init__(self, sources: TailSources, run: str) -> None:
        self.sources, self.run = sources, run
        self.followers = 0
        self.final_run: Run | None = None
        """The run, once it is final and was read completely."""
        self._changed = asyncio.Event()

    def poll(self) -> Update:
        """Poll once, in a thread. Raise JobsError if that fails."""
        raise NotImplementedError

    def apply_update(self, update: Update) -> bool:
        """Store an update, on the event loop. Return whether it changed anything."""
        raise NotImplementedError

    async def wait_for_update(self, seconds: float) -> bool:
        """Wait for an update, or until the tail is closed. Return False after `seconds`."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Wake every follower."""
        self._changed.set()
        self._changed = asyncio.Event()


EventUpdate = tuple[Run, list[Event]]


class EventTail(Tail[EventUpdate]):
    """The events of a run in the registry."""

    def __init__(self, sources: TailSources, run: str) -> None:
        super().__init__(sources, run)
        self.events: list[Event] = []

    def poll(self) -> EventUpdate:
        """Return the run, and the events after those that are known."""
        after = self.events[-1].position if self.events else 0
        with self.sources.database.read() as session:
            # The run is read first, so that the event that made it final is among the events.
            run = runs.get(session, self.run)
            return run, runs.list_events(session, self.run, after=after)

    def apply_update(self, update: EventUpdate) -> bool:
        """Store the events. A final run without new events is complete."""
        run, fresh = update
        self.events += fresh
        if run.status in FINAL and not fresh:
            self.final_run = run
        return bool(fresh)

    def list_events_after(self, position: int) -> list[Event]:
        """Return the known events after a position."""
        if not self.events or self.events[-1].position <= position:
            return []
        return [event for event in self.events if event.position > position]


@dataclass
class LogBuffer:
    """The newest part of an attempt's log."""

    attempt: Attempt
    start: int
    """Offset of `data` in the log."""
    data: bytearray = field(default_factory=bytearray)
    is_complete: bool = False
    """Whether the log ends here."""

    @property
    def end(self) -> int:
        """Return the offset of the next byte of the log."""
        return self.start + len(self.data)

    def add(self, more: bytes) -> None:
        """Append bytes, and drop the oldest above the limit."""
        self.data += more
        if len(self.data) > MAX_BUFFERED_BYTES:
            surplus = len(self.data) - MAX_BUFFERED_BYTES
            del self.data[:surplus]
            self.start += surplus


@dataclass(frozen=True)
class LogChunk:
    """The new bytes of one attempt's log."""

    attempt: Attempt
    start: int
    data: bytes
    is_complete: bool


LogUpdate = tuple[Run, list[LogChunk]]


class LogTail(Tail[LogUpdate]):
    """The output of a run's attempts, from the first one on that has a reader."""

    def __init__(self, sources: TailSources, run: str) -> None:
        super().__init__(sources, run)
        self.buffers: dict[int, LogBuffer] = {}
        self.start_offsets: dict[int, int] = {}
        """Offset of the first reader of each attempt that readers started at."""
        self.newest_attempt = 0

    def add_reader(self, attempt: int, offset: int) -> None:
        """Add a reader that starts here and reads through all later attempts."""
        if all(attempt < number for number in self.start_offsets):
            self.start_offsets[attempt] = offset
            self.final_run = None

    def poll(self) -> LogUpdate:
        """Return the output of the attempts since the last poll."""
        with self.sources.database.read() as session:
            run = runs.get(session, self.run)
            attempts = runs.list_attempts(session, self.run)
        start_offsets = dict(self.start_offsets)
        first = min(start_offsets, default=run.attempt)
        chunks = []
        for attempt in attempts:
            buffer = self.buffers.get(attempt.number)
            if attempt.number < first or (buffer is not None and buffer.is_complete):
                continue
            start = start_offsets.get(attempt.number, 0) if buffer is None else buffer.end
            # Decided before the log is read: an attempt that is over by then writes no more.
            is_over = attempt.number < run.attempt or run.status in FINAL
            chunks.append(self._read_chunk(attempt, start, is_over=is_over))
        return run, chunks

    def apply_update(self, update: LogUpdate) -> bool:
        """Store the chunks. A final run is complete once all its attempts' logs are."""
        run, chunks = update
        changed = run.attempt != self.newest_attempt
        for chunk in chunks:
            buffer = self.buffers.setdefault(
                chunk.attempt.number, LogBuffer(chunk.attempt, chunk.start)
            )
            buffer.add(chunk.data)
            buffer.is_complete = chunk.is_complete
            changed = changed or bool(chunk.data) or chunk.is_complete
        self.newest_attempt = run.attempt
        first = min(self.start_offsets, default=run.attempt)
        buffers = (self.buffers.get(number) for number in range(first, run.attempt + 1))
        if run.status in FINAL and all(buffer is None or buffer.is_complete for buffer in buffers):
            self.final_run = run
        return changed

    def _read_chunk(self, attempt: Attempt, start: int, *, is_over: bool) -> LogChunk:
        data = bytearray()
        while True:
            more = self.sources.read_log(attempt, start + len(data))
            data += more
            is_complete = is_over and not more
            if (
                is_complete
                or len(data) >= MAX_BUFFERED_BYTES
                or (len(more) < FULL_READ_BYTES and not is_over)
            ):
                return LogChunk(attempt, start, bytes(data), is_complete)
