"""Requests to the service: asked again where that is safe, answered with values or errors."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from jobs.errors import Fault
from orchestrator.client.errors import NotUnderstood, Refused, ServiceUnreachable
from orchestrator.client.pauses import Patience, Pauses
from orchestrator.client.problems import error_of, pause_asked
from orchestrator.client.settings import Settings

TIMES = httpx.Timeout(30.0, connect=5.0)
FOLLOWING = httpx.Timeout(30.0, connect=5.0, read=60.0)
"""A stream sends a sign of life every few seconds; after so long without one it is asked anew."""
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""The request did not arrive, so it may be sent again whatever it asks for."""
SAFE = frozenset({"GET", "DELETE"})


class Wire:
    """The connection to one service, with one token."""

    def __init__(
        self,
        settings: Settings,
        patience: Patience | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        self.settings, self._waiting = settings, waiting
        self.patience = patience or Patience()
        headers = {"Accept": "application/json", "User-Agent": "slora"}
        if settings.token is not None:
            headers["Authorization"] = f"Bearer {settings.token}"
        self._http = httpx.Client(
            base_url=settings.service,
            headers=headers,
            timeout=TIMES,
            verify=_trust(settings),
            # A proxy for the world outside has no business with a service of this machine.
            trust_env=not settings.local,
        )

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        key: str | None = None,
        repeatable: bool = False,
        within: float | None = None,
    ) -> httpx.Response:
        """An answer below 300; raises ClientError. `key` makes a repeated request the same one.

        `repeatable` says that to ask twice is to ask once, which is known of GET and DELETE.
        `within` is the most seconds of one try; then there is no other.
        """
        seconds = self.patience.ask_s if within is None else 0.0
        pauses = Pauses(self.patience, seconds, self._waiting)
        repeatable = repeatable or method in SAFE or key is not None
        given = {name: value for name, value in (params or {}).items() if value is not None}
        sent: dict[str, Any] = {"params": given} if given else {}
        sent |= {} if body is None else {"json": body}
        sent |= {} if key is None else {"headers": {"Idempotency-Key": key}}
        sent |= {} if within is None else {"timeout": within}
        while True:
            try:
                answer = self._http.request(method, path, **sent)
            except httpx.TransportError as gone:
                again = repeatable or isinstance(gone, NEVER_SENT)
                if not (again and pauses.again(told(gone))):
                    raise self._unreachable(gone) from gone
            else:
                if answer.status_code < 300:
                    return answer
                error = error_of(self.settings, answer)
                if not (isinstance(error, ServiceUnreachable) and repeatable):
                    raise error
                if not pauses.again(error.why, pause_asked(answer)):
                    raise error

    def json(self, method: str, path: str, **asked: Any) -> Any:
        """The answer's value. Raises ClientError."""
        answer = self.ask(method, path, **asked)
        try:
            return answer.json()
        except ValueError:
            raise NotUnderstood(self.settings.service, "what it answers is no JSON") from None

    def text(self, path: str, *, params: Mapping[str, Any] | None = None) -> Iterator[str]:
        """A text as it comes. Raises ClientError."""
        try:
            with self._http.stream("GET", path, params=params or {}) as answer:
                if answer.status_code >= 300:
                    answer.read()
                    raise error_of(self.settings, answer)
                yield from answer.iter_text()
        except httpx.TransportError as gone:
            raise self._unreachable(gone) from gone

    @contextmanager
    def stream(self, path: str, last: str | None) -> Iterator[httpx.Response]:
        """An open stream of events behind `last`, tried once.

        Raises ClientError, httpx.TransportError.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        headers |= {} if last is None else {"Last-Event-ID": last}
        with self._http.stream("GET", path, headers=headers, timeout=FOLLOWING) as answer:
            if answer.status_code >= 300:
                answer.read()
                raise error_of(self.settings, answer)
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            if kind != "text/event-stream":
                raise NotUnderstood(self.settings.service, f"{kind[:40]!a} came, and no stream")
            yield answer

    def _unreachable(self, gone: httpx.TransportError) -> ServiceUnreachable:
        return ServiceUnreachable(self.settings.service, told(gone))


def told(gone: Exception) -> str:
    """What the network says, in few words."""
    if isinstance(gone, httpx.TimeoutException):
        return "no answer in time"
    return str(gone)[:200] or type(gone).__name__


def at(*parts: str) -> str:
    """A path below /v1 of names as they are. Raises Refused for one that would be another path."""
    for part in parts:
        if not part.strip("."):
            raise Refused([Fault("name", f"{part!a} is no name", "Look at the list.")])
    return "/".join(("/v1", *(quote(part, safe="") for part in parts)))


def _trust(settings: Settings) -> ssl.SSLContext | bool:
    if settings.service.startswith("http://"):
        # Nothing to verify, and to load the authorities takes as long as a question.
        return False
    return ssl.create_default_context(cafile=settings.authority)
