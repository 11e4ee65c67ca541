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
class Answer:
    """One answer; `cut` leaves out the end of what its length promises."""

    status: int = 200
    body: bytes = b"{}"
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    drop: bool = False
    """The request is read, and the connection closed without a word."""


@dataclass(frozen=True)
class Heard:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def told(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode())


def problem(status: int, detail: str, faults: Any = (), **headers: str) -> Answer:
    body = {"type": "about:blank", "title": "T", "status": status, "detail": detail}
    return Answer(status, json.dumps({**body, "faults": list(faults)}).encode(), PROBLEM, headers)


def stream(*events: tuple[str, str, Any], cut: bytes = b"") -> Answer:
    """Events (id, kind, value), then perhaps a piece of another, then the connection closes."""
    text = "".join(
        f"id: {name}\nevent: {kind}\ndata: {json.dumps(value)}\n\n" for name, kind, value in events
    )
    return Answer(200, text.encode() + cut, STREAM)


class Scripted:
    """The script, and all that was heard. The last answer is given again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.heard = deque(answers), list[Heard]()
        self.url = ""
        self._lock = threading.Lock()

    def next(self, heard: Heard) -> Answer:
        with self._lock:
            self.heard.append(heard)
            return self.answers.popleft() if len(self.answers) > 1 else self.answers[0]


@contextmanager
def playing(*answers: Answer) -> Iterator[Scripted]:
    """The server on a port of its own."""
    script = Scripted(*answers)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            heard = Heard(self.command, self.path, dict(self.headers), self.rfile.read(length))
            told = script.next(heard)
            self.close_connection = True
            if told.drop:
                return
            self.send_response(told.status)
            self.send_header("Content-Type", told.kind)
            if told.kind != STREAM:
                self.send_header("Content-Length", str(len(told.body) + (9 if told.cut else 0)))
            for name, value in told.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(told.body)

        do_GET = do_POST = do_PATCH = do_DELETE = answer

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


class Hours:
    """A clock that a test winds: to sleep is to move it."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
