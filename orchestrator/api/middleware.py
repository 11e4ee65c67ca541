"""What every request passes through: the largest body that is read, and what is counted of it."""

from __future__ import annotations

import time

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.problems import make_problem
from orchestrator.control.metrics import ServiceMetrics

MAX_BODY_BYTES = 1 << 20
TOO_LARGE = f"The body is larger than {MAX_BODY_BYTES:,} bytes. A spec is a page of text."
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class BodyLimit:
    """Refuses bodies that are too large, by what they say and by what arrives."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _read_content_length(scope) > MAX_BODY_BYTES:
            # Not read to its end, so the connection can't be used again.
            response = make_problem(413, TOO_LARGE, headers={"Connection": "close"})
            await response(scope, receive, send)
            return
        received_bytes = 0

        async def receive_limited() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, TOO_LARGE, headers={"Connection": "close"})
            return message

        await self._app(scope, receive_limited, send)


class RequestMetrics:
    """Counts answers by their route's template, and how long each took to begin."""

    def __init__(self, app: ASGIApp, observer: ServiceMetrics) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
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
            # Never what was asked for: a stranger could make a new series with each request.
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._observer.requests.labels(method, _get_route_template(scope), str(code)).inc()


def _read_content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else MAX_BODY_BYTES + 1
    return 0


def _get_route_template(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "none")
