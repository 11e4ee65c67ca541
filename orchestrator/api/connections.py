"""Limit connections: in all, by address, and in the time that a client may take to send or read.

Uvicorn closes idle connections, but waits without end for the rest of a header and for a client
that does not read. A guard stands between the transport and uvicorn's protocol. Requests reach it
through the ASGI state of their connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.server import ServerState

from orchestrator.control.config import HttpLimits

CONNECTION_KEY = "connection"
"""Key of the connection in the state of a request's ASGI scope."""
MAX_HEADER_BYTES = 1 << 17
"""Twice the bytes of a body that uvicorn reads before the request begins."""
MAX_UNREAD_BYTES = 1 << 20
"""Bytes of a body that may still arrive after its request was answered."""
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 22\r\nRetry-After: 2\r\nConnection: close\r\n\r\n"
    b"Too many connections.\n"
)


class ConnectionTable:
    """The open connections of a server."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self._by_address: dict[str, set[ConnectionGuard]] = defaultdict(set)
        self._count, self._turns = 0, itertools.count()

    @property
    def count(self) -> int:
        """Return the number of connections."""
        return self._count

    def draw_turn(self) -> int:
        """Return a number above all earlier ones: many connections have the same time."""
        return next(self._turns)

    def admit(self, connection: ConnectionGuard) -> bool:
        """Add a connection, if need be in place of one without a request; return False if not.

        Slow clients can therefore not keep others out: those that never completed a request go
        first, the oldest before the others.
        """
        address = connection.address
        neighbours = self._by_address.get(address, set())
        if len(neighbours) >= self.limits.max_connections_per_address:
            if not self._evict_from(neighbours):
                return False
        elif self._count >= self.limits.max_connections:
            everybody = (guard for guards in self._by_address.values() for guard in guards)
            if not self._evict_from(everybody):
                return False
        self._by_address[address].add(connection)
        self._count += 1
        return True

    def remove(self, connection: ConnectionGuard) -> None:
        """Remove a connection, if it is still there."""
        neighbours = self._by_address.get(connection.address, set())
        if connection in neighbours:
            neighbours.remove(connection)
            self._count -= 1
            if not neighbours:
                del self._by_address[connection.address]

    def _evict_from(self, connections: Iterable[ConnectionGuard]) -> bool:
        waiting = [connection for connection in connections if not connection.has_request]
        if not waiting:
            return False
        evicted = min(waiting, key=lambda guard: (guard.has_served, guard.turn))
        self.remove(evicted)
        evicted.abort()
        return True


class ConnectionGuard(asyncio.Protocol):
    """A connection: passes everything on to uvicorn's protocol, and ends it at a timeout."""

    def __init__(
        self,
        table: ConnectionTable,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._table = table
        protocol_class: Any = AutoHTTPProtocol
        self._inner: Any = protocol_class(
            config=config,
            server_state=server_state,
            app_state={**app_state, CONNECTION_KEY: self},
            _loop=_loop,
        )
        self._loop = _loop or asyncio.get_event_loop()
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_refused = False
        self._waiting_bytes = self._unread_bytes = 0
        self.address = ""
        self.has_request = self.has_served = False
        self.turn = table.draw_turn()
        """Its place among the connections that wait for a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, or answer that there are too many."""
        # uvloop's transports are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self._table.admit(self):
            self._is_refused = True
            self._transport.write(REFUSAL)
            self._transport.close()
            return
        self._inner.connection_made(transport)
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        """Pass the data on, unless the header is too long."""
        if self._is_refused:
            return
        if self.has_request:
            self._unread_bytes -= len(data)
        else:
            if self._header_timer is None:
                self._start_header_timer()
            # This chunk may hold the end of the header and a part of the body.
            if self._waiting_bytes > MAX_HEADER_BYTES + max(0, self._unread_bytes):
                self.abort()
                return
            self._waiting_bytes += len(data)
        self._inner.data_received(data)

    def eof_received(self) -> None:
        """Pass the end of the client's data on."""
        if not self._is_refused:
            self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._cancel_timers()
        self._table.remove(self)
        if not self._is_refused:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        self._write_timer = self._loop.call_later(self._table.limits.write_timeout_s, self.abort)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Continue, because the client reads."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._inner.resume_writing()

    def begin_request(self, body_bytes: int) -> None:
        """Note that a header is complete; `body_bytes` of a body follow."""
        self.has_request = True
        self._unread_bytes = body_bytes
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def end_request(self) -> None:
        """Note that the request was answered: the connection waits for another one."""
        self.has_request, self.has_served = False, True
        self.turn = self._table.draw_turn()

    def abort(self) -> None:
        """Close the connection without waiting for the client."""
        self._transport.abort()

    def _start_header_timer(self) -> None:
        self._waiting_bytes = 0
        seconds = self._table.limits.header_timeout_s
        self._header_timer = self._loop.call_later(seconds, self.abort)

    def _cancel_timers(self) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()


class ConnectionWatch:
    """Tells a connection when a request of it begins and ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        connection = scope.get("state", {}).get(CONNECTION_KEY)
        if not isinstance(connection, ConnectionGuard):
            await self._app(scope, receive, send)
            return
        connection.begin_request(_read_body_length(scope))
        try:
            await self._app(scope, receive, send)
        finally:
            connection.end_request()


def make_protocol_class(table: ConnectionTable) -> type[asyncio.Protocol]:
    """Return the class of a server's connections."""

    class BoundConnection(ConnectionGuard):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(table, **arguments)

    return BoundConnection


def _read_body_length(scope: Scope) -> int:
    """Return the declared length of the body, as far as it may be sent."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = int(value) if value.isdigit() and len(value) < 20 else MAX_UNREAD_BYTES
            return min(length, MAX_UNREAD_BYTES)
        if name == b"transfer-encoding":
            return MAX_UNREAD_BYTES
    return 0
