"""Sharing of tails between followers: a tail exists while it has followers, and one task polls it.

Followers read from the tail at their own pace: a slow one delays nobody, and has no buffer of its
own that could grow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, Generic, TypeVar

from anyio import CapacityLimiter, to_thread

from jobs.errors import JobsError
from orchestrator.api.tails import Tail, TailSources
from orchestrator.api.token_watch import TokenWatch, WatchedToken
from orchestrator.cluster.base import Cluster
from orchestrator.registry.database import Database

POLL_INTERVAL_S = 0.5
MAX_CONCURRENT_POLLS = 4
"""Concurrent polls, over all tails."""

TailT = TypeVar("TailT", bound=Tail[Any])

log = logging.getLogger(__name__)


class Subscription(Generic[TailT]):
    """A follower's access to a tail, while its token is valid."""

    def __init__(self, hub: StreamHub, tail: TailT, token: WatchedToken) -> None:
        self.hub, self.tail, self.token = hub, tail, token

    def is_open(self) -> bool:
        """Return whether the stream may continue."""
        return self.token.is_valid and not self.hub.closed


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
        self.token_watch = TokenWatch(database, on_invalid=self._wake_all)
        self.closed = False
        self._tails: dict[tuple[type[Tail[Any]], str], Tail[Any]] = {}
        self._tasks: dict[Tail[Any], asyncio.Task[None]] = {}

    @asynccontextmanager
    async def follow(
        self, tail_type: type[TailT], run: str, token_id: str
    ) -> AsyncIterator[Subscription[TailT]]:
        """Provide the run's tail of this type while the block lasts, to the bearer of a token."""
        tail = self._tails.setdefault((tail_type, run), tail_type(self.sources, run))
        assert isinstance(tail, tail_type)
        tail.followers += 1
        try:
            async with self.token_watch.watch(token_id) as token:
                yield Subscription(self, tail, token)
        finally:
            tail.followers -= 1
            if not tail.followers:
                del self._tails[tail_type, run]
                self._cancel_polling(tail)

    def ensure_polling(self, tail: Tail[Any]) -> None:
        """Start polling the tail, unless it is polled already or complete."""
        if tail.final_run is None and tail not in self._tasks and not self.closed:
            # In a context of its own: it polls for all followers, and belongs to no request.
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._poll_until_final(tail), context=Context())
            self._tasks[tail] = task

    async def close(self) -> None:
        """End every stream, so that its follower resumes at another instance of the service."""
        self.closed = True
        self.token_watch.close()
        tasks = list(self._tasks.values())
        for tail in list(self._tails.values()):
            self._cancel_polling(tail)
        self._wake_all()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def tail_count(self) -> int:
        """Return the number of tails."""
        return len(self._tails)

    def _wake_all(self) -> None:
        for tail in list(self._tails.values()):
            tail.wake()

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
