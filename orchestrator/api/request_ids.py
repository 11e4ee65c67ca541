"""Request ids: in the header of every answer, in problems, in log lines and in the audit log.

The id is in a context variable, which the threads of a request inherit. A client may send its own.
"""

from __future__ import annotations

import logging
import re
import secrets
from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def get_request_id() -> str | None:
    """Return the id of the current request; None outside of requests."""
    return _request_id.get()


class RequestIds:
    """Gives every request its id, and every answer the header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _choose_id(scope)
        # Never reset: the handler of unexpected errors runs after this middleware. Each request is
        # a task with a context of its own.
        _request_id.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class RequestIdFilter(logging.Filter):
    """Adds `request_id` to log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id of the current request, or None. Keep every record."""
        record.request_id = get_request_id()
        return True


def _choose_id(scope: Scope) -> str:
    """Return the id that the client sent, or a new one if it is missing, repeated or invalid."""
    name = HEADER.lower().encode()
    values = [value.decode("latin1") for header, value in scope["headers"] if header == name]
    if len(values) == 1 and _VALID_ID.fullmatch(values[0]):
        return str(values[0])
    return secrets.token_hex(8)
