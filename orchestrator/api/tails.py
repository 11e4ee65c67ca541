"""Feeds: one run's events, or its log, looked at once for all who follow it.

What asks the outside world runs in a thread and changes nothing; what it found is taken in on the
event loop, where the followers read, so neither ever sees half of a change.
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
"""Bytes of an attempt's log that are kept for its followers; who is behind them reads alone."""
FULL_READ_BYTES = 1 << 16
"""Bytes after which a cluster surely has more to tell."""

Update = TypeVar("Update")


@dataclass(frozen=True)
class TailSources:
    """Where feeds look."""

    database: Database
    clusters: Mapping[str, Cluster]

    def read_log(self, attempt: Attempt, start: int) -> bytes:
        """An attempt's log from a byte on, asked of its cluster now. Raises ClusterUnreachable."""
        cluster = self.clusters.get(attempt.cluster)
        # One that is no longer configured can't be asked; nor can one that nobody remembers.
        return b"" if cluster is None else cluster.read_log(attempt.submission, start)


class Tail(Generic[Update]):
    """One run, looked at for all who follow it."""

    def __init__(self, sources: TailSources, run: str) -> None:
        self.sources, self.run = sources, run
        self.followers = 0
        self.final_run: Run | None = None
        """The run, once it is final and all of it was read."""
        self._changed = asyncio.Event()

    def poll(self) -> Update:
        """One look, in a thread. Raises JobsError."""
        raise NotImplementedError

    def apply_update(self, update: Update) -> bool:
        """Keeps what was seen, on the event loop; whether it is news."""
        raise NotImplementedError

    async def wait_for_update(self, seconds: float) -> bool:
        """Waits for news, or until the feed is closed; False where none came in time."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Lets every follower look at what is kept."""
        self._changed.set()
        self._changed = asyncio.Event()


EventUpdate = tuple[Run, list[Event]]


class EventTail(Tail[EventUpdate]):
    """What the registry saw of a run."""

    def __init__(self, sources: TailSources, run: str) -> None:
        super().__init__(sources, run)
        self.events: list[Event] = []

    def poll(self) -> EventUpdate:
        """The run, and the events behind those that are known."""
        after = self.events[-1].position if self.events else 0
        with self.sources.database.read() as session:
            # The run first: what made it final is then among the events.
            run = runs.get(session, self.run)
            return run, runs.list_events(session, self.run, after=after)

    def apply_update(self, update: EventUpdate) -> bool:
        """The events; nothing behind a final run's last one."""
        run, fresh = update
        self.events += fresh
        if run.status in FINAL and not fresh:
            self.final_run = run
        return bool(fresh)

    def list_events_after(self, position: int) -> list[Event]:
        """What is known behind a position."""
        if not self.events or self.events[-1].position <= position:
            return []
        return [event for event in self.events if event.position > position]


@dataclass
class LogBuffer:
    """The newest part of an attempt's log."""

    attempt: Attempt
    start: int
    """The byte of the log that `data` begins with."""
    data: bytearray = field(default_factory=bytearray)
    is_complete: bool = False
    """Whether nothing comes behind it any more."""

    @property
    def end(self) -> int:
        """The byte of the log that comes next."""
        return self.start + len(self.data)

    def add(self, more: bytes) -> None:
        """More of the log; the oldest part goes."""
        self.data += more
        if len(self.data) > MAX_BUFFERED_BYTES:
            surplus = len(self.data) - MAX_BUFFERED_BYTES
            del self.data[:surplus]
            self.start += surplus


@dataclass(frozen=True)
class LogChunk:
    """What one look at one attempt's log brought."""

    attempt: Attempt
    start: int
    data: bytes
    is_complete: bool


LogUpdate = tuple[Run, list[LogChunk]]


class LogTail(Tail[LogUpdate]):
    """What a run's attempts print, from the first one on that somebody reads."""

    def __init__(self, sources: TailSources, run: str) -> None:
        super().__init__(sources, run)
        self.buffers: dict[int, LogBuffer] = {}
        self.start_offsets: dict[int, int] = {}
        """Attempts that somebody reads, and the byte where the first of them began."""
        self.newest_attempt = 0

    def add_reader(self, attempt: int, offset: int) -> None:
        """Somebody reads from here on, through all later attempts too."""
        if all(attempt < number for number in self.start_offsets):
            self.start_offsets[attempt] = offset
            self.final_run = None

    def poll(self) -> LogUpdate:
        """What the attempts have printed since the last look."""
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
            # Known before the log is read: what is at its end then stays so.
            is_over = attempt.number < run.attempt or run.status in FINAL
            chunks.append(self._read_chunk(attempt, start, is_over=is_over))
        return run, chunks

    def apply_update(self, update: LogUpdate) -> bool:
        """The logs' new parts; over where each is whole to the last attempt."""
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
            at_its_end = is_over and not more
            if (
                at_its_end
                or len(data) >= MAX_BUFFERED_BYTES
                or (len(more) < FULL_READ_BYTES and not is_over)
            ):
                return LogChunk(attempt, start, bytes(data), at_its_end)
