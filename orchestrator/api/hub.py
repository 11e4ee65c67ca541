"""Who follows what: a feed lives while somebody follows it, and one task looks for all of them.

Followers read at their own pace from what the feed keeps: a slow one holds nobody up, and has no
buffer of its own that could grow. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from jobs.errors import JobsError
from orchestrator.api.feeds import Feed, Sources
from orchestrator.cluster.door import Cluster
from orchestrator.registry.database import Database

EVERY_S = 0.5
LOOKS = 4
"""Looks at once, over all feeds."""

Kind = TypeVar("Kind", bound=Feed[Any])

log = logging.getLogger(__name__)


class Hub:
    """The feeds that are followed now."""

    def __init__(
        self, database: Database, clusters: Mapping[str, Cluster], *, every_s: float = EVERY_S
    ) -> None:
        self.sources, self._every_s = Sources(database, clusters), every_s
        self.looks = CapacityLimiter(LOOKS)
        self.closed = False
        self._feeds: dict[tuple[type[Feed[Any]], str], Feed[Any]] = {}
        self._tasks: dict[Feed[Any], asyncio.Task[None]] = {}

    @asynccontextmanager
    async def follow(self, kind: type[Kind], run: str) -> AsyncIterator[Kind]:
        """The run's feed of this kind, while the block lasts."""
        feed = self._feeds.setdefault((kind, run), kind(self.sources, run))
        assert isinstance(feed, kind)
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                del self._feeds[kind, run]
                self._end(feed)

    def look_again(self, feed: Feed[Any]) -> None:
        """Lets the feed be looked at until it is over."""
        if feed.over is None and feed not in self._tasks and not self.closed:
            task = asyncio.get_running_loop().create_task(self._keep_looking(feed))
            self._tasks[feed] = task

    async def close(self) -> None:
        """Ends every stream, so that its follower goes on at another service."""
        self.closed = True
        tasks = list(self._tasks.values())
        for feed in list(self._feeds.values()):
            self._end(feed)
            feed.wake()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def watched(self) -> int:
        """How many feeds there are."""
        return len(self._feeds)

    async def _keep_looking(self, feed: Feed[Any]) -> None:
        try:
            while feed.over is None:
                try:
                    seen = await to_thread.run_sync(feed.look, limiter=self.looks)
                    if feed.take(seen) or feed.over is not None:
                        feed.wake()
                except JobsError as error:
                    # Nothing is known: the followers wait, and are told afterwards.
                    log.info("run %s can't be followed now: %s", feed.run, error)
                if feed.over is None:
                    await asyncio.sleep(self._every_s)
        finally:
            self._tasks.pop(feed, None)

    def _end(self, feed: Feed[Any]) -> None:
        task = self._tasks.pop(feed, None)
        if task is not None:
            task.cancel()
