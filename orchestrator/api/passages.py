"""What every request passes through: the largest body that is read, and what is counted of it."""

from __future__ import annotations

import time

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.problems import problem
from orchestrator.service.observer import Observer

LARGEST_BODY = 1 << 20
TOO_LARGE = f"The body is larger than {LARGEST_BODY:,} bytes. A spec is a page of text."
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Limited:
    """Refuses bodies that are too large, by what they say and by what arrives."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _said(scope) > LARGEST_BODY:
            # Not read to its end, so the connection can't be used again.
            refused = problem(413, TOO_LARGE, headers={"Connection": "close"})
            await refused(scope, receive, send)
            return
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > LARGEST_BODY:
                raise HTTPException(413, TOO_LARGE, headers={"Connection": "close"})
            return message

        await self._app(scope, counted, send)


class Observed:
    """Counts answers by their route's template, and how long each took to begin."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, code = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                took = time.perf_counter() - began
                self._observer.request_seconds.labels(_template(scope)).observe(took)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # Never what was asked for: a stranger could make a new series with each request.
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._observer.requests.labels(method, _template(scope), str(code)).inc()


def _said(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else LARGEST_BODY + 1
    return 0


def _template(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "none")
