"""A real HTTP server that plays a script: what the real service can't be made to do on demand."""

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
    """One answer; `cut` leaves out the end of what its length promises."""

    status: int = 200
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    drop: bool = False
    """The request is read, and the connection closed without a word."""


@dataclass(frozen=True)
class ReceivedRequest:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def make_json(value: Any, status: int = 200) -> ScriptedResponse:
    return ScriptedResponse(status, json.dumps(value).encode())


def make_problem(status: int, detail: str, faults: Any = (), **headers: str) -> ScriptedResponse:
    body = {"type": "about:blank", "title": "T", "status": status, "detail": detail}
    return ScriptedResponse(
        status, json.dumps({**body, "faults": list(faults)}).encode(), PROBLEM, headers
    )


def make_stream(*events: tuple[str, str, Any], cut: bytes = b"") -> ScriptedResponse:
    """Events (id, kind, value), then perhaps a piece of another, then the connection closes."""
    text = "".join(
        f"id: {name}\nevent: {kind}\ndata: {json.dumps(value)}\n\n" for name, kind, value in events
    )
    return ScriptedResponse(200, text.encode() + cut, STREAM)


class ScriptedService:
    """The script, and all that was heard. The last answer is given again and again."""

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
    """The server on a port of its own."""
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
            """Nothing."""

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
    """A clock that a test winds: to sleep is to move it."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
