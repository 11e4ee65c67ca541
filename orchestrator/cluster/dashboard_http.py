"""HTTP to a cluster's dashboard: bounded in time and size, with a token that may be rotated.

Redirects are not followed, and requests are not retried: the caller knows what may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx

from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.cluster.ray_responses import DashboardResponse, InvalidRayResponse

CONNECT_S, SILENCE_S = 5.0, 15.0
RESPONSE_TIMEOUT_S = 20.0
"""Seconds for a whole response, however steadily it arrives. Ray's head itself waits ten seconds
for the agent that accepts jobs."""
MAX_RESPONSE_BYTES = 64 << 20
"""Bytes of a response. Ten thousand jobs with their messages take a quarter of it."""
MAX_TOKEN_BYTES = 64 << 10


class DashboardClient:
    """Connections to the dashboard of one cluster."""

    def __init__(
        self,
        cluster: str,
        address: str,
        token: Path | None,
        *,
        timeout_s: float = RESPONSE_TIMEOUT_S,
        max_bytes: int = MAX_RESPONSE_BYTES,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._timeout_s, self._max_bytes = cluster, timeout_s, max_bytes
        self._now = now
        silence = min(SILENCE_S, timeout_s)
        self._client = httpx.Client(
            base_url=address.rstrip("/"),
            auth=None if token is None else _TokenAuth(cluster, token),
            timeout=httpx.Timeout(silence, connect=min(CONNECT_S, timeout_s)),
            headers={"User-Agent": "slora"},
        )

    def request(
        self, method: str, path: str, *, json: Any = None, content: bytes | None = None
    ) -> DashboardResponse:
        """Send a request and return its response, whatever its status. Raise ClusterUnreachable."""
        try:
            with self._client.stream(method, path, json=json, content=content) as response:
                body, is_complete = self._read_body(response)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            # The text of the error may contain the URL with a password.
            raise ClusterUnreachable(self._cluster, _describe_error(error)) from error
        result = DashboardResponse(
            response.status_code, response.headers.get("content-type", ""), body, is_complete
        )
        if result.status in (401, 403):
            raise ClusterUnreachable(self._cluster, f"it rejects the token (HTTP {result.status})")
        if 300 <= result.status < 400:
            raise ClusterUnreachable(
                self._cluster, f"a redirect (HTTP {result.status}), which Ray never sends"
            )
        return result

    def get_json(self, path: str) -> Any:
        """Return the JSON at a path. Raise ClusterUnreachable."""
        return self.parse(lambda: self.request("GET", path).parse_json())

    def parse(self, parser: Callable[[], Any]) -> Any:
        """Return the result of `parser`. Raise ClusterUnreachable if the response is not Ray's."""
        try:
            return parser()
        except InvalidRayResponse as error:
            raise ClusterUnreachable(self._cluster, str(error)) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _read_body(self, response: httpx.Response) -> tuple[bytes, bool]:
        deadline, body = self._now() + self._timeout_s, bytearray()
        # Chunks of any size: a fixed size would wait for its last byte.
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._max_bytes:
                return bytes(body[: self._max_bytes]), False
            if self._now() > deadline:
                raise httpx.ReadTimeout(f"no complete response within {self._timeout_s:g} s")
        return bytes(body), True


class _TokenAuth(httpx.Auth):
    """Reads the token from its file at each request, so that it can be rotated while we run."""

    def __init__(self, cluster: str, file: Path) -> None:
        self._cluster, self._file = cluster, file

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._read_token()}"
        yield request

    def _read_token(self) -> str:
        try:
            with self._file.open("rb") as opened:
                token = opened.read(MAX_TOKEN_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not ASCII text"
            problem = f"its token in {self._file} can't be read ({reason})"
            raise ClusterUnreachable(self._cluster, problem) from None
        if not token or not token.isprintable() or " " in token:
            raise ClusterUnreachable(self._cluster, f"{self._file} does not contain a token")
        return token


def _describe_error(error: Exception) -> str:
    """Return a description of the error without its own text."""
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    return f"the connection was interrupted ({type(error).__name__})"
