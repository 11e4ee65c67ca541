"""Sharing of tails between followers: a tail exists while it has followers, and one task polls it.

Followers read from the tail at their own pace: a slow one delays nobody, and has no buffer of its
own that could grow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from jobs.errors import JobsError
from orchestrator.api.tails import Tail, TailSources
from orchestrator.cluster.base import Cluster
from orchestrator.registry.database import Database

POLL_INTERVAL_S = 0.5
MAX_CONCURRENT_POLLS = 4
"""Concurrent polls, over all tails."""

TailT = TypeVar("TailT", bound=Tail[Any])

log = logging.getLogger(__name__)


class StreamHub:
    """The tails that have followers."""

    def __init__(
        self,
        database: Database,
        clusters: Mapping[str, Cluster],
        *,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self.sources, self._poll_interval_s = TailSources(database, clusters), poll_interval_s
        self.poll_limiter = CapacityLimiter(MAX_CONCURRENT_POLLS)
        self.closed = False
        self._tails: dict[tuple[type[Tail[Any]], str], Tail[Any]] = {}
        self._tasks: dict[Tail[Any], asyncio.Task[None]] = {}

    @asynccontextmanager
    async def follow(self, tail_type: type[TailT], run: str) -> AsyncIterator[TailT]:
        """Provide the run's tail of this type while the block lasts."""
        tail = self._tails.setdefault((tail_type, run), tail_type(self.sources, run))
        assert isinstance(tail, tail_type)
        tail.followers += 1
        try:
            yield tail
        finally:
            tail.followers -= 1
            if not tail.followers:
                del self._tails[tail_type, run]
                self._cancel_polling(tail)

    def ensure_polling(self, tail: Tail[Any]) -> None:
        """Start polling the tail, unless it is polled already or complete."""
        if tail.final_run is None and tail not in self._tasks and not self.closed:
            task = asyncio.get_running_loop().create_task(self._poll_until_final(tail))
            self._tasks[tail] = task

    async def close(self) -> None:
        """End every stream, so that its follower resumes at another instance of the service."""
        self.closed = True
        tasks = list(self._tasks.values())
        for tail in list(self._tails.values()):
            self._cancel_polling(tail)
            tail.wake()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def tail_count(self) -> int:
        """Return the number of tails."""
        return len(self._tails)

    async def _poll_until_final(self, tail: Tail[Any]) -> None:
        try:
            while tail.final_run is None:
                try:
                    update = await to_thread.run_sync(tail.poll, limiter=self.poll_limiter)
                    if tail.apply_update(update) or tail.final_run is not None:
                        tail.wake()
                except JobsError as error:
                    # The state is unknown, so the followers wait for the next poll.
                    log.info("run %s can't be polled: %s", tail.run, error)
                if tail.final_run is None:
                    await asyncio.sleep(self._poll_interval_s)
        finally:
            self._tasks.pop(tail, None)

    def _cancel_polling(self, tail: Tail[Any]) -> None:
        task = self._tasks.pop(tail, None)
        if task is not None:
            task.cancel()
