"""The tokens of open streams: a stream ends soon after its token was revoked, or has expired.

One query checks the tokens of all streams, so it also notices what another instance of the service
has revoked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context

from anyio import CapacityLimiter, to_thread

from jobs.errors import JobsError
from orchestrator.registry import tokens
from orchestrator.registry.database import Database

CHECK_INTERVAL_S = 0.5
"""A stream ends within a second of the revocation: this, the query, and one message."""

log = logging.getLogger(__name__)


class WatchedToken:
    """A token with open streams."""

    def __init__(self) -> None:
        self.streams = 0
        self.is_valid = True


class TokenWatch:
    """Checks the tokens of the open streams."""

    def __init__(self, database: Database, *, on_invalid: Callable[[], None]) -> None:
        """`on_invalid` is called when a token has become invalid, to wake its streams."""
        self._database, self._on_invalid = database, on_invalid
        self._tokens: dict[str, WatchedToken] = {}
        self._added = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Of its own: a check must not wait for polls of a cluster that does not answer.
        self._limiter = CapacityLimiter(1)

    @asynccontextmanager
    async def watch(self, token_id: str) -> AsyncIterator[WatchedToken]:
        """Watch a token while the block lasts. It is checked at once, and then regularly."""
        token = self._tokens.get(token_id)
        if token is None:
            token = self._tokens[token_id] = WatchedToken()
            self._added.set()
        token.streams += 1
        self._ensure_checking()
        try:
            yield token
        finally:
            token.streams -= 1
            if not token.streams:
                del self._tokens[token_id]
                if not self._tokens:
                    self.close()

    @property
    def token_count(self) -> int:
        """Return the number of tokens with open streams."""
        return len(self._tokens)

    def close(self) -> None:
        """Stop checking."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _ensure_checking(self) -> None:
        if self._task is None or self._task.done():
            # In a context of its own: it belongs to no request.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._check_regularly(), context=Context())

    async def _check_regularly(self) -> None:
        try:
            while True:
                self._added.clear()
                await self._check()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._added.wait(), CHECK_INTERVAL_S)
        except asyncio.CancelledError:
            raise
        except BaseException:
            # Without checks no stream continues.
            self._invalidate(list(self._tokens.values()))
            raise

    async def _check(self) -> None:
        token_ids = list(self._tokens)
        try:
            valid_ids = await to_thread.run_sync(
                self._read_valid_ids, token_ids, limiter=self._limiter
            )
        except JobsError as error:
            # Nobody can tell, and while the database does not answer, nobody revokes a token.
            log.warning("the tokens of open streams can't be checked: %s", error)
            return
        self._invalidate(
            [
                self._tokens[token_id]
                for token_id in token_ids
                if token_id not in valid_ids and token_id in self._tokens
            ]
        )

    def _invalidate(self, watched: list[WatchedToken]) -> None:
        for token in watched:
            token.is_valid = False
        if watched:
            self._on_invalid()

    def _read_valid_ids(self, token_ids: list[str]) -> set[str]:
        with self._database.read() as session:
            return tokens.list_valid_ids(session, token_ids)
