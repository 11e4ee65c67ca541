"""HTTP to a cluster's dashboard: bounded in time and size, with a token that may change any day.

Nothing is followed and nothing is asked twice here: who asks knows what may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx

from orchestrator.cluster.answers import Answer, NotRay
from orchestrator.cluster.errors import ClusterUnreachable

CONNECT_S, SILENCE_S = 5.0, 15.0
PATIENCE_S = 20.0
"""Seconds that one answer may take as a whole, however steadily it drips. Ray's own head waits ten
for the agent that takes jobs."""
LARGEST = 64 << 20
"""Bytes of an answer. Ten thousand jobs with their last words come to a quarter of it."""
LARGEST_TOKEN = 64 << 10


class Wire:
    """One cluster's connections."""

    def __init__(
        self,
        cluster: str,
        address: str,
        token: Path | None,
        *,
        patience_s: float = PATIENCE_S,
        largest: int = LARGEST,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._patience_s, self._largest = cluster, patience_s, largest
        self._now = now
        silence = min(SILENCE_S, patience_s)
        self._client = httpx.Client(
            base_url=address.rstrip("/"),
            auth=None if token is None else _Token(cluster, token),
            timeout=httpx.Timeout(silence, connect=min(CONNECT_S, patience_s)),
            headers={"User-Agent": "slora"},
        )

    def ask(
        self, method: str, path: str, *, json: Any = None, content: bytes | None = None
    ) -> Answer:
        """One question, one answer of whatever status. Raises ClusterUnreachable."""
        try:
            with self._client.stream(method, path, json=json, content=content) as response:
                body, whole = self._read(response)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as wrong:
            # Not its words: they may hold the address with what stands in it.
            raise ClusterUnreachable(self._cluster, _said(wrong)) from wrong
        found = Answer(response.status_code, response.headers.get("content-type", ""), body, whole)
        if found.status in (401, 403):
            raise ClusterUnreachable(self._cluster, f"it takes no such token (HTTP {found.status})")
        if 300 <= found.status < 400:
            raise ClusterUnreachable(
                self._cluster, f"HTTP {found.status}, a redirect, which Ray never sends"
            )
        return found

    def value(self, path: str) -> Any:
        """The JSON at a path. Raises ClusterUnreachable."""
        return self.read(lambda: self.ask("GET", path).value())

    def read(self, reading: Callable[[], Any]) -> Any:
        """What `reading` makes of an answer. Raises ClusterUnreachable where it is not Ray's."""
        try:
            return reading()
        except NotRay as wrong:
            raise ClusterUnreachable(self._cluster, str(wrong)) from wrong

    def close(self) -> None:
        """Ends the connections."""
        self._client.close()

    def _read(self, response: httpx.Response) -> tuple[bytes, bool]:
        until, body = self._now() + self._patience_s, bytearray()
        # As it comes: a chunk of a size of ours would wait for its last byte.
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._largest:
                return bytes(body[: self._largest]), False
            if self._now() > until:
                raise httpx.ReadTimeout(f"more than {self._patience_s:g} s for one answer")
        return bytes(body), True


class _Token(httpx.Auth):
    """The token as its file says it at each question, so that it can be changed under a service."""

    def __init__(self, cluster: str, file: Path) -> None:
        self._cluster, self._file = cluster, file

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._read()}"
        yield request

    def _read(self) -> str:
        try:
            with self._file.open("rb") as opened:
                token = opened.read(LARGEST_TOKEN).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as wrong:
            reason = getattr(wrong, "strerror", None) or "it is no text"
            why = f"its token in {self._file} can't be read ({reason})"
            raise ClusterUnreachable(self._cluster, why) from None
        if not token or not token.isprintable() or " " in token:
            raise ClusterUnreachable(self._cluster, f"{self._file} holds no token")
        return token


def _said(wrong: Exception) -> str:
    """What went wrong, in words of ours."""
    if isinstance(wrong, httpx.TimeoutException):
        return "no whole answer in time"
    if isinstance(wrong, httpx.ConnectError):
        return "no connection"
    return f"the connection broke ({type(wrong).__name__})"
