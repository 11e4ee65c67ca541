"""A small server with vLLM's part of the OpenAI API that an evaluation asks for.

It computes with a real model, so that its losses are right; the long test holds vLLM to the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import torch


@dataclass
class CompletionsServer:
    """What it answers with, and what it was asked."""

    model: Any
    names: tuple[str, ...] = ("base", "chat")
    key: str = ""
    status: int = 200
    """The status of completions."""
    echoes: bool = True
    """Whether it returns the log-probabilities of a prompt."""
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def score(self, ids: list[int]) -> list[float | None]:
        with self.lock, torch.no_grad():
            logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [None, *(float(logprobs[at - 1, ids[at]]) for at in range(1, len(ids)))]


@contextmanager
def serve_completions(server: CompletionsServer) -> Iterator[CompletionsServer]:
    """Answer on a port of this machine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.is_allowed():
                self.answer(200, {"data": [{"id": name} for name in server.names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.is_allowed():
                return
            server.requests.append(body)
            if server.status != 200:
                self.answer(server.status, {"error": {"message": "maximum context length is 8"}})
                return
            assert body["echo"] and body["max_tokens"] == 0 and body["model"] in server.names
            scores = server.score(body["prompt"]) if server.echoes else []
            logprobs = {"token_logprobs": scores} if server.echoes else None
            self.answer(200, {"choices": [{"text": "", "logprobs": logprobs}]})

        def is_allowed(self) -> bool:
            if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                self.answer(401, {"error": "Unauthorized"})
                return False
            return True

        def answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = Thread(target=http.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
