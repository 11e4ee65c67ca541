"""An HTTP server whose responses a test sets, well-formed or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

JSON, HTML, TEXT = "application/json; charset=utf-8", "text/html", "text/plain; charset=utf-8"
TIMEOUT_S = 10.0


@dataclass
class ReceivedRequest:
    """A received request."""

    method: str
    path: str
    authorization: str | None
    body: bytes


@dataclass(frozen=True)
class ScriptedResponse:
    """A response."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    claimed_length: int | None = None
    """A false Content-Length."""
    silent: bool = False
    """Receive the request and never respond."""
    drips: bool = False
    """Send a byte now and then, without an end."""


def make_json(value: Any, status: int = 200) -> ScriptedResponse:
    return ScriptedResponse(status, json.dumps(value).encode())


class ScriptedDashboard:
    """Responds to every request with `respond`, and records the requests."""

    def __init__(self) -> None:
        self.received: list[ReceivedRequest] = []
        self.respond: Callable[[ReceivedRequest], ScriptedResponse] = lambda request: (
            ScriptedResponse(500)
        )
        self.stopped = threading.Event()
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                request = ReceivedRequest(
                    self.command, self.path, self.headers["Authorization"], self.rfile.read(length)
                )
                dashboard.received.append(request)
                self._send(dashboard.respond(request))

            do_POST = do_PUT = do_GET

            def _send(self, response: ScriptedResponse) -> None:
                if response.silent:
                    dashboard.stopped.wait(TIMEOUT_S)
                    self.close_connection = True
                    return
                self.send_response(response.status)
                self.send_header("Content-Type", response.content_type)
                length = (
                    len(response.body)
                    if response.claimed_length is None
                    else response.claimed_length
                )
                self.send_header("Content-Length", str(10**6 if response.drips else length))
                for name, value in response.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(response.body)
                if response.drips:
                    self._send_slowly()
                if response.claimed_length is not None or response.drips:
                    self.close_connection = True

            def _send_slowly(self) -> None:
                try:
                    while not dashboard.stopped.wait(0.05):
                        self.wfile.write(b" ")
                except OSError:
                    return

            def log_message(self, *arguments: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
