"""A real HTTP server that answers what a test tells it to, well-formed or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

JSON, HTML, TEXT = "application/json; charset=utf-8", "text/html", "text/plain; charset=utf-8"
PATIENCE_S = 10.0


@dataclass
class Asked:
    """One request that arrived."""

    method: str
    path: str
    authorization: str | None
    body: bytes


@dataclass(frozen=True)
class Says:
    """One answer."""

    status: int = 200
    body: bytes = b""
    kind: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    claims: int | None = None
    """The length that it claims, where that is a lie."""
    never: bool = False
    """It takes the question, and says nothing."""
    drips: bool = False
    """A byte now and then, without an end."""


def told(value: Any, status: int = 200) -> Says:
    return Says(status, json.dumps(value).encode())


class Server:
    """Answers every question by `answer`, and remembers them."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Says] = lambda asked: Says(500)
        self.over = threading.Event()
        here = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                asked = Asked(
                    self.command, self.path, self.headers["Authorization"], self.rfile.read(length)
                )
                here.asked.append(asked)
                self._say(here.answer(asked))

            do_POST = do_PUT = do_GET

            def _say(self, says: Says) -> None:
                if says.never:
                    here.over.wait(PATIENCE_S)
                    self.close_connection = True
                    return
                self.send_response(says.status)
                self.send_header("Content-Type", says.kind)
                length = len(says.body) if says.claims is None else says.claims
                self.send_header("Content-Length", str(10**6 if says.drips else length))
                for name, value in says.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(says.body)
                if says.drips:
                    self._drip()
                if says.claims is not None or says.drips:
                    self.close_connection = True

            def _drip(self) -> None:
                try:
                    while not here.over.wait(0.05):
                        self.wfile.write(b" ")
                except OSError:
                    return

            def log_message(self, *told: Any) -> None:
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
        self.over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
