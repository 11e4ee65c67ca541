"""An HTTP server that plays a script, for what the real service can't do on demand."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROBLEM = "application/problem+json"
STREAM = "text/event-stream"


@dataclass(frozen=True)
class ScriptedResponse:
    """A response; `cut` leaves out the end of the announced length."""

    status: int = 200
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    drop: bool = False
    """Read the request, and close the connection without a response."""


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it was received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def make_json(value: Any, status: int = 200) -> ScriptedResponse:
    return ScriptedResponse(status, json.dumps(value).encode())


def make_problem(status: int, detail: str, errors: Any = (), **headers: str) -> ScriptedResponse:
    body = {"type": "about:blank", "title": "T", "status": status, "detail": detail}
    return ScriptedResponse(
        status, json.dumps({**body, "errors": list(errors)}).encode(), PROBLEM, headers
    )


def make_stream(*events: tuple[str, str, Any], cut: bytes = b"") -> ScriptedResponse:
    """Make a stream of events (id, kind, value), perhaps with a part of one more at the end."""
    text = "".join(
        f"id: {name}\nevent: {kind}\ndata: {json.dumps(value)}\n\n" for name, kind, value in events
    )
    return ScriptedResponse(200, text.encode() + cut, STREAM)


class ScriptedService:
    """The script and the received requests. The last response is repeated."""

    def __init__(self, *answers: ScriptedResponse) -> None:
        self.answers, self.received = deque(answers), list[ReceivedRequest]()
        self.url = ""
        self._lock = threading.Lock()

    def next(self, request: ReceivedRequest) -> ScriptedResponse:
        with self._lock:
            self.received.append(request)
            return self.answers.popleft() if len(self.answers) > 1 else self.answers[0]


@contextmanager
def run_script(*answers: ScriptedResponse) -> Iterator[ScriptedService]:
    """Run the server on a free port."""
    script = ScriptedService(*answers)

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            request = ReceivedRequest(
                self.command, self.path, dict(self.headers), self.rfile.read(length)
            )
            response = script.next(request)
            self.close_connection = True
            if response.drop:
                return
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            if response.content_type != STREAM:
                self.send_header(
                    "Content-Length", str(len(response.body) + (9 if response.cut else 0))
                )
            for name, value in response.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(response.body)

        do_GET = do_POST = do_PATCH = do_DELETE = respond

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class SimulatedClock:
    """A clock that sleeping advances."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
