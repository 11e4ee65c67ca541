"""Middleware of every request: limits on its body, and metrics."""

from __future__ import annotations

import asyncio
import time

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.problems import make_problem
from orchestrator.control.metrics import ServiceMetrics

MAX_BODY_BYTES = 1 << 20
TOO_LARGE = f"The body exceeds {MAX_BODY_BYTES:,} bytes. Send a smaller spec."
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class BodyLimit:
    """Rejects bodies that are too large, by declared and by actual length, or that take too long.

    A body must be complete `timeout_s` after its header.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app, self._timeout_s = app, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _read_content_length(scope) > MAX_BODY_BYTES:
            # The body stays unread, so the connection can't be reused.
            response = make_problem(413, TOO_LARGE, headers={"Connection": "close"})
            await response(scope, receive, send)
            return
        received_bytes, is_complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._timeout_s

        async def receive_limited() -> Message:
            nonlocal received_bytes, is_complete
            if is_complete:
                # The end of the connection, for which a stream waits.
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"The body did not arrive within {self._timeout_s:g} s. Send it again."
                raise HTTPException(408, detail, headers={"Connection": "close"}) from None
            is_complete = not message.get("more_body", False)
            received_bytes += len(message.get("body", b""))
            if received_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, TOO_LARGE, headers={"Connection": "close"})
            return message

        await self._app(scope, receive_limited, send)


class RequestMetrics:
    """Counts responses by their route's template, and measures the time to their first byte."""

    def __init__(self, app: ASGIApp, observer: ServiceMetrics) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, code = time.perf_counter(), 500

        async def record_start(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                elapsed_s = time.perf_counter() - started_at
                self._observer.request_seconds.labels(_get_route_template(scope)).observe(elapsed_s)
            await send(message)

        try:
            await self._app(scope, receive, record_start)
        finally:
            # The template, not the path: each distinct label value is a new time series.
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._observer.requests.labels(method, _get_route_template(scope), str(code)).inc()


def _read_content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else MAX_BODY_BYTES + 1
    return 0


def _get_route_template(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "none")
