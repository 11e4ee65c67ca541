"""The gate that requests for answers pass: it closes while the weights change.

It counts the requests inside. A swap closes the gate, waits until they have ended, and opens it
again, so each request is answered by one state of the weights. While it is closed requests wait;
after a swap that failed they are refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from slora.serving.refusals import ServingRefused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
DRAIN_S = 120.0
"""How long a swap waits for requests in flight."""
OWN_PREFIX = "/slora"


class RequestGate:
    """Requests in flight, and whether others may start. All in one event loop."""

    def __init__(self) -> None:
        self._running = set[asyncio.Future[None]]()
        self._is_open = asyncio.Event()
        self._is_open.set()
        self.problem: str | None = None
        """Why all requests are refused; None if they are not."""

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait until the gate is open, and count this request. Raise ServingRefused."""
        # A waiter runs after the gate was opened, when it may be closed again.
        while not self._is_open.is_set():
            await self._is_open.wait()
        if self.problem is not None:
            raise ServingRefused(503, self.problem)
        end = asyncio.get_running_loop().create_future()
        self._running.add(end)
        try:
            yield
        finally:
            self._running.discard(end)
            end.set_result(None)

    @asynccontextmanager
    async def close(self, drain_s: float = DRAIN_S) -> AsyncIterator[None]:
        """Keep the gate closed during the block, which starts when no request is in flight.

        Raise ServingRefused if some are after `drain_s`; the gate is open again then.
        """
        self._is_open.clear()
        try:
            if self._running:
                await asyncio.wait(set(self._running), timeout=drain_s)
            if self._running:
                raise ServingRefused(
                    503,
                    f"{len(self._running)} requests still run after {drain_s:.0f} s; nothing was "
                    "changed. Try again later",
                )
            yield
        finally:
            self._is_open.set()

    async def wait_for_current(self) -> None:
        """Return when every request that is in flight now has ended."""
        if self._running:
            await asyncio.wait(set(self._running))


class GateMiddleware:
    """Lets the requests that compute something through the gate; others pass beside it."""

    def __init__(self, app: App, gate: RequestGate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        path = str(scope.get("path", "")).removeprefix(str(scope.get("root_path", "")))
        is_answer = scope["type"] == "websocket" or (
            scope["type"] == "http" and scope["method"] == "POST"
        )
        if not is_answer or path.startswith(OWN_PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            async with self._gate.enter():
                await self._app(scope, receive, send)
        except ServingRefused as error:
            await _send_refusal(send, error, scope["type"])


async def _send_refusal(send: Send, error: ServingRefused, kind: str) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1013, "reason": error.reason[:120]})
        return
    body = {"error": {"message": error.reason, "type": "ServiceUnavailable", "code": error.status}}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
