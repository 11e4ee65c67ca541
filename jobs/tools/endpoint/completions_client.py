"""Ask an OpenAI-compatible server for the log-probabilities of given tokens.

`POST /v1/completions` with a prompt of token ids, `echo` and `logprobs`, as vLLM has it: what comes
back is untrusted, and its shape is checked. The key of the server is never part of a message.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from jobs.errors import Fault, InputError, JobsError, Unreachable
from jobs.network import is_loopback

KEY_VARIABLE = "OPENAI_API_KEY"
TIMEOUTS = httpx.Timeout(300.0, connect=10.0)
"""Seconds: a busy server answers a long prompt late."""
MAX_QUOTED = 300
"""Characters of a server's message that ours repeats."""


class CompletionsClient:
    """The connection to one server. Use with `with`."""

    def __init__(self, url: str, environment: Mapping[str, str] = os.environ) -> None:
        """`url`: with or without `/v1` at its end. Raise InputError if it is not one of HTTP."""
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            # Not quoted: it may have a password in it.
            problem = "it is not an http:// or https:// URL without a password"
            raise InputError([Fault("--endpoint", problem, "E.g. http://127.0.0.1:8000.")])
        key = environment.get(KEY_VARIABLE, "").strip()
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUTS,
            trust_env=not is_loopback(parts.hostname),
        )

    def __enter__(self) -> CompletionsClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def list_models(self) -> list[str]:
        """Return the names that the server answers to. Raise Unreachable, InputError."""
        entries = self._request("GET", "/v1/models").get("data")
        if not isinstance(entries, list):
            raise self._make_shape_error("its list of models has no `data`")
        return [str(entry.get("id")) for entry in entries if isinstance(entry, dict)]

    def score_tokens(self, model: str, ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each token but the first, given those before it.

        Raise Unreachable, InputError.
        """
        body = {
            "model": model, "prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 0,
            "temperature": 0.0,
        }  # fmt: skip
        answer = self._request("POST", "/v1/completions", body)
        try:
            values = answer["choices"][0]["logprobs"]["token_logprobs"][1 : len(ids)]
            scores = [float(value) for value in values]
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._make_shape_error("it returns no log-probabilities of a prompt") from None
        if len(scores) != len(ids) - 1 or not all(map(math.isfinite, scores)):
            problem = f"of {len(ids) - 1} tokens it returned {len(scores)} finite log-probabilities"
            raise self._make_shape_error(problem)
        return scores

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the JSON object of an answer, or raise what its status means."""
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{self.url} does not answer: {reason}. Is the server up?") from None
        if response.status_code >= 500:
            quoted = response.text[:MAX_QUOTED]
            raise Unreachable(
                f"{self.url} failed with {response.status_code}: {quoted}. Try later."
            )
        if response.status_code in (401, 403):
            problem = f"{self.url} refuses the request ({response.status_code})"
            raise InputError([Fault("--endpoint", problem, f"Set {KEY_VARIABLE} to its key.")])
        if response.status_code >= 400:
            raise self._make_refusal(response)
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._make_shape_error("it did not answer with JSON")
        return value

    def _make_refusal(self, response: httpx.Response) -> InputError:
        problem = f"{self.url} refuses the request ({response.status_code}): "
        return InputError(
            [
                Fault(
                    "--endpoint",
                    problem + response.text[:MAX_QUOTED],
                    "A row that is too long for the server: lower --max-length.",
                )
            ]
        )

    def _make_shape_error(self, problem: str) -> JobsError:
        remedy = "Use a server with `echo` and `logprobs` in /v1/completions, as vLLM's."
        return InputError([Fault("--endpoint", f"{self.url}: {problem}", remedy)])
