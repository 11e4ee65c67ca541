"""Feeds: one run's events, or its log, looked at once for all who follow it.

What asks the outside world runs in a thread and changes nothing; what it found is taken in on the
event loop, where the followers read, so neither ever sees half of a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator.cluster.door import Cluster
from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import FINAL
from orchestrator.registry.values import Attempt, Event, Run

KEPT = 4 << 20
"""Bytes of an attempt's log that are kept for its followers; who is behind them reads alone."""
MUCH = 1 << 16
"""Bytes after which a cluster surely has more to tell."""

Look = TypeVar("Look")


@dataclass(frozen=True)
class Sources:
    """Where feeds look."""

    database: Database
    clusters: Mapping[str, Cluster]

    def log_of(self, attempt: Attempt, start: int) -> bytes:
        """An attempt's log from a byte on, asked of its cluster now. Raises ClusterUnreachable."""
        cluster = self.clusters.get(attempt.cluster)
        # One that is no longer configured can't be asked; nor can one that nobody remembers.
        return b"" if cluster is None else cluster.log(attempt.submission, start)


class Feed(Generic[Look]):
    """One run, looked at for all who follow it."""

    def __init__(self, sources: Sources, run: str) -> None:
        self.sources, self.run = sources, run
        self.followers = 0
        self.over: Run | None = None
        """The run, once it is final and all of it was read."""
        self._news = asyncio.Event()

    def look(self) -> Look:
        """One look, in a thread. Raises JobsError."""
        raise NotImplementedError

    def take(self, look: Look) -> bool:
        """Keeps what was seen, on the event loop; whether it is news."""
        raise NotImplementedError

    async def news(self, seconds: float) -> bool:
        """Waits for news, or until the feed is closed; False where none came in time."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Lets every follower look at what is kept."""
        self._news.set()
        self._news = asyncio.Event()


EventLook = tuple[Run, list[Event]]


class EventFeed(Feed[EventLook]):
    """What the registry saw of a run."""

    def __init__(self, sources: Sources, run: str) -> None:
        super().__init__(sources, run)
        self.events: list[Event] = []

    def look(self) -> EventLook:
        """The run, and the events behind those that are known."""
        after = self.events[-1].position if self.events else 0
        with self.sources.database.read() as session:
            # The run first: what made it final is then among the events.
            run = runs.get(session, self.run)
            return run, runs.events(session, self.run, after=after)

    def take(self, look: EventLook) -> bool:
        """The events; nothing behind a final run's last one."""
        run, fresh = look
        self.events += fresh
        if run.status in FINAL and not fresh:
            self.over = run
        return bool(fresh)

    def behind(self, position: int) -> list[Event]:
        """What is known behind a position."""
        if not self.events or self.events[-1].position <= position:
            return []
        return [event for event in self.events if event.position > position]


@dataclass
class Tape:
    """The newest part of an attempt's log."""

    attempt: Attempt
    start: int
    """The byte of the log that `data` begins with."""
    data: bytearray = field(default_factory=bytearray)
    whole: bool = False
    """Whether nothing comes behind it any more."""

    @property
    def end(self) -> int:
        """The byte of the log that comes next."""
        return self.start + len(self.data)

    def add(self, found: bytes) -> None:
        """More of the log; the oldest part goes."""
        self.data += found
        if len(self.data) > KEPT:
            surplus = len(self.data) - KEPT
            del self.data[:surplus]
            self.start += surplus


@dataclass(frozen=True)
class Heard:
    """What one look at one attempt's log brought."""

    attempt: Attempt
    start: int
    data: bytes
    whole: bool


LogLook = tuple[Run, list[Heard]]


class LogFeed(Feed[LogLook]):
    """What a run's attempts print, from the first one on that somebody reads."""

    def __init__(self, sources: Sources, run: str) -> None:
        super().__init__(sources, run)
        self.tapes: dict[int, Tape] = {}
        self.wanted: dict[int, int] = {}
        """Attempts that somebody reads, and the byte where the first of them began."""
        self.newest = 0

    def want(self, attempt: int, offset: int) -> None:
        """Somebody reads from here on, through all later attempts too."""
        if all(attempt < number for number in self.wanted):
            self.wanted[attempt] = offset
            self.over = None

    def look(self) -> LogLook:
        """What the attempts have printed since the last look."""
        with self.sources.database.read() as session:
            run = runs.get(session, self.run)
            attempts = runs.attempts(session, self.run)
        wanted = dict(self.wanted)
        first = min(wanted, default=run.attempt)
        heard = []
        for one in attempts:
            tape = self.tapes.get(one.number)
            if one.number < first or (tape is not None and tape.whole):
                continue
            start = wanted.get(one.number, 0) if tape is None else tape.end
            # Known before the log is read: what is at its end then stays so.
            ended = one.number < run.attempt or run.status in FINAL
            heard.append(self._heard(one, start, ended=ended))
        return run, heard

    def take(self, look: LogLook) -> bool:
        """The logs' new parts; over where each is whole to the last attempt."""
        run, heard = look
        news = run.attempt != self.newest
        for one in heard:
            tape = self.tapes.setdefault(one.attempt.number, Tape(one.attempt, one.start))
            tape.add(one.data)
            tape.whole = one.whole
            news = news or bool(one.data) or one.whole
        self.newest = run.attempt
        first = min(self.wanted, default=run.attempt)
        through = (self.tapes.get(number) for number in range(first, run.attempt + 1))
        if run.status in FINAL and all(tape is None or tape.whole for tape in through):
            self.over = run
        return news

    def _heard(self, attempt: Attempt, start: int, *, ended: bool) -> Heard:
        data = bytearray()
        while True:
            found = self.sources.log_of(attempt, start + len(data))
            data += found
            at_its_end = ended and not found
            if at_its_end or len(data) >= KEPT or (len(found) < MUCH and not ended):
                return Heard(attempt, start, bytes(data), at_its_end)
