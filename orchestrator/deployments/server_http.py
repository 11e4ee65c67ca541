"""HTTP to an inference server: bounded in time and size, with a key that no message quotes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from orchestrator.deployments.errors import TargetRefused, TargetUnreachable
from orchestrator.deployments.serving_target import Answer, Prompt

CONNECT_S, STATE_S, REQUEST_S = 5.0, 10.0, 150.0
"""A state is read at once; loading an adapter, and draining a server for a swap, take a while."""
MAX_BODY_BYTES = 64 << 20
MAX_REASON_CHARS = 500
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class HttpAnswer:
    """The status of a response, and its JSON or None."""

    status: int
    body: Any


class ServerHttp:
    """The connections to one server."""

    def __init__(self, endpoint: str, url: str, api_key: str | None) -> None:
        self.endpoint = endpoint
        headers = {"User-Agent": "slora", "Accept": "application/json"}
        headers |= {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=httpx.Timeout(REQUEST_S, connect=CONNECT_S),
            # A server on this machine is not reached through a proxy for the internet.
            trust_env=urlsplit(url).hostname not in LOOPBACK,
        )

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> HttpAnswer:
        """Return a response, whatever its status. Raise TargetUnreachable."""
        options: dict[str, Any] = {} if body is None else {"json": body}
        if method == "GET":
            options["timeout"] = httpx.Timeout(STATE_S, connect=CONNECT_S)
        try:
            with self._client.stream(method, path, **options) as response:
                data = self._read_body(response)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            # The text of the error may contain the URL with a password.
            raise TargetUnreachable(self.endpoint, _describe_failure(error)) from None
        if response.status_code in (401, 403):
            raise TargetUnreachable(self.endpoint, "it refuses the API key")
        try:
            return HttpAnswer(response.status_code, json.loads(data))
        except (ValueError, RecursionError):
            return HttpAnswer(response.status_code, None)

    def get(self, path: str) -> Any:
        """Return the JSON at a path. Raise TargetUnreachable if there is none."""
        answer = self.send("GET", path)
        if answer.status != 200 or not isinstance(answer.body, dict):
            reason = f"GET {path} returns HTTP {answer.status} without the expected JSON"
            raise TargetUnreachable(self.endpoint, reason)
        return answer.body

    def change(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a change and return its JSON. Raise TargetRefused with the server's reason."""
        answer = self.send("POST", path, body)
        if answer.status in (502, 504) or (answer.status == 503 and answer.body is None):
            raise TargetUnreachable(self.endpoint, f"HTTP {answer.status}")
        if answer.status >= 300:
            reason = read_reason(answer.body) or f"POST {path} returns HTTP {answer.status}"
            raise TargetRefused(self.endpoint, reason)
        return answer.body

    def ask(self, model: str, prompt: Prompt, *, max_tokens: int, is_chat: bool) -> Answer:
        """Return a greedy answer of the OpenAI API. Raise TargetRefused or TargetUnreachable."""
        options = {"model": model, "max_tokens": max_tokens, "temperature": 0}
        started = time.monotonic()
        if is_chat:
            messages = [{"role": "user", "content": prompt}]
            path, body = "/v1/chat/completions", {**options, "messages": messages}
        else:
            sent = prompt if isinstance(prompt, str) else list(prompt)
            path, body = "/v1/completions", {**options, "prompt": sent}
        choice = self._get_choice(self.change(path, body))
        text = choice["message"].get("content") if is_chat else choice.get("text")
        return Answer(str(text or ""), time.monotonic() - started)

    def score(self, model: str, tokens: Sequence[int], targets: Sequence[int]) -> list[float]:
        """Return the log-probability of the tokens at these indices, by one request.

        vLLM's `prompt_logprobs` end the engine of a stock server on a CPU if another request with a
        LoRA is in the same batch.
        """
        body = {"model": model, "prompt": list(tokens), "prompt_logprobs": 1}
        rows = self._generate_token(body).get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(tokens):
            raise TargetRefused(self.endpoint, "it returns no log-probabilities of a prompt")
        return [_pick_score(rows[target], str(tokens[target])) for target in targets]

    def score_each(self, model: str, tokens: Sequence[int], targets: Sequence[int]) -> list[float]:
        """Return the same by a request for each index, in which only that token is allowed.

        The log-probabilities of vLLM are those before a token is forbidden.
        """
        return [self._score_next(model, tokens[:target], tokens[target]) for target in targets]

    def _score_next(self, model: str, tokens: Sequence[int], token: int) -> float:
        body = {
            "model": model,
            "prompt": list(tokens),
            "allowed_token_ids": [token],
            "logprobs": 1,
        }
        logprobs = self._generate_token(body).get("logprobs")
        scores = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(scores, list) or not scores:
            raise TargetRefused(self.endpoint, "it returns no log-probability of a token")
        return _parse_score(scores[0])

    def _generate_token(self, body: Mapping[str, Any]) -> dict[str, Any]:
        options = {"max_tokens": 1, "temperature": 0}
        return self._get_choice(self.change("/v1/completions", {**body, **options}))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _get_choice(self, body: Any) -> dict[str, Any]:
        try:
            choice = body["choices"][0]
        except (KeyError, IndexError, TypeError):
            choice = None
        if not isinstance(choice, dict):
            raise TargetRefused(self.endpoint, "an answer has no choices")
        return choice

    def _read_body(self, response: httpx.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                reason = f"a response has more than {MAX_BODY_BYTES} bytes"
                raise TargetUnreachable(self.endpoint, reason)
        return bytes(body)


def read_reason(body: Any) -> str:
    """Return the reason in the body of an error, of vLLM or of FastAPI; empty without one."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body)
    values = (error.get("message"), error.get("detail")) if isinstance(error, dict) else (error,)
    reason = next((str(value) for value in values if value), "")
    return _cut_traceback(reason)[:MAX_REASON_CHARS]


def _cut_traceback(text: str) -> str:
    """Return the last line of a Python traceback, which says what happened; other texts whole."""
    return text.strip().rpartition("\n")[2] if '\n  File "' in text else text


def _pick_score(row: Any, token: str) -> float:
    entry = row.get(token) if isinstance(row, dict) else None
    return _parse_score(entry.get("logprob") if isinstance(entry, dict) else None)


def _parse_score(value: Any) -> float:
    """Return a log-probability; NaN for what is none, which no canary passes."""
    return float(value) if isinstance(value, int | float) else math.nan


def _describe_failure(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    return f"the connection was interrupted ({type(error).__name__})"
