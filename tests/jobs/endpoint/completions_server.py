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

    def complete(self, ids: list[int], count: int) -> dict[str, Any]:
        """Return the log-probabilities of a prompt, and of its greedy continuation by `count`."""
        with self.lock, torch.no_grad():
            for _ in range(count):
                ids = [*ids, int(self.model(torch.tensor([ids])).logits[0, -1].argmax())]
            logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores = [None, *(float(logprobs[at - 1, ids[at]]) for at in range(1, len(ids)))]
        best = [None, *({"best": float(row.max())} for row in logprobs[:-1])]
        return {"token_logprobs": scores, "top_logprobs": best}


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
            assert body["echo"] and body["model"] in server.names
            prompt = body["prompt"]
            prompts = prompt if isinstance(prompt[0], list) else [prompt]
            answers = [server.complete(ids, body["max_tokens"]) for ids in prompts]
            choices = [
                {"index": at, "text": "", "logprobs": answer if server.echoes else None}
                for at, answer in enumerate(answers)
            ]
            self.answer(200, {"choices": choices})

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
