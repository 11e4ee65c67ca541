"""HTTP requests to the service: retried if that is safe, with values or errors as the result."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from jobs.errors import Fault
from orchestrator.client.client_settings import ClientSettings
from orchestrator.client.errors import (
    RequestRejected,
    ServiceUnreachable,
    TooManyRequests,
    UnexpectedResponse,
)
from orchestrator.client.problem_errors import make_error, read_retry_after
from orchestrator.client.retry import Backoff, RetryBudget
from orchestrator.schemas.base import ResponseSchema

Value = TypeVar("Value", bound=ResponseSchema)

TIMEOUTS = httpx.Timeout(30.0, connect=5.0)
STREAM_TIMEOUTS = httpx.Timeout(30.0, connect=5.0, read=60.0)
"""A stream sends a comment every few seconds; after so long without one it is reopened."""
NOT_SENT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""The request was not sent, so any request may be retried."""
IDEMPOTENT_METHODS = frozenset({"GET", "DELETE"})


class Transport:
    """The connection to one service, with one token."""

    def __init__(
        self,
        settings: ClientSettings,
        retry_budget: RetryBudget | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self.settings, self._on_retry = settings, on_retry
        self.retry_budget = retry_budget or RetryBudget()
        headers = {"Accept": "application/json", "User-Agent": "slora"}
        if settings.token is not None:
            headers["Authorization"] = f"Bearer {settings.token}"
        self._http = httpx.Client(
            base_url=settings.url,
            headers=headers,
            timeout=TIMEOUTS,
            verify=_choose_verification(settings),
            # A local service is not reached through a proxy for the internet.
            trust_env=not settings.is_local,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        key: str | None = None,
        repeatable: bool = False,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """Return a response with a status below 300. Raise ClientError for any other outcome.

        `key` is the idempotency key. `repeatable` marks a request that may be sent twice, which GET
        and DELETE are anyway. `timeout_s` allows a single try of so many seconds.
        """
        seconds = self.retry_budget.request_s if timeout_s is None else 0.0
        backoff = Backoff(self.retry_budget, seconds, self._on_retry)
        repeatable = repeatable or method in IDEMPOTENT_METHODS or key is not None
        query = {name: value for name, value in (params or {}).items() if value is not None}
        options: dict[str, Any] = {"params": query} if query else {}
        options |= {} if body is None else {"json": body}
        options |= {} if key is None else {"headers": {"Idempotency-Key": key}}
        options |= {} if timeout_s is None else {"timeout": timeout_s}
        while True:
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as failure:
                can_retry = repeatable or isinstance(failure, NOT_SENT_ERRORS)
                if not (can_retry and backoff.wait_to_retry(describe_error(failure))):
                    raise self._make_unreachable(failure) from failure
            else:
                if response.status_code < 300:
                    return response
                error = make_error(self.settings, response)
                is_safe = repeatable or isinstance(error, TooManyRequests)
                if not (isinstance(error, ServiceUnreachable) and is_safe):
                    raise error
                if not backoff.wait_to_retry(error.reason, read_retry_after(response)):
                    raise error

    def request_json(self, method: str, path: str, **options: Any) -> Any:
        """Return the JSON of a response. Raise ClientError."""
        response = self.request(method, path, **options)
        try:
            return response.json()
        except ValueError:
            raise UnexpectedResponse(self.settings.url, "the response is not JSON") from None

    def request_value(
        self, value_type: type[Value], method: str, path: str, **options: Any
    ) -> Value:
        """Return a response as a value of this type. Raise ClientError."""
        return self.parse(value_type, self.request_json(method, path, **options))

    def parse(self, value_type: type[Value], body: Any) -> Value:
        """Return the value of a body. Raise UnexpectedResponse if it is something else.

        Keys that this client does not know are ignored: the service may be newer.
        """
        try:
            return value_type.model_validate(body, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or type(body).__name__
            reason = f"not a valid {value_type.__name__} ({key}: {first['msg']})"
            raise UnexpectedResponse(self.settings.url, reason) from None

    def stream_text(self, path: str, *, params: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Yield a text as it arrives. Raise ClientError."""
        try:
            with self._http.stream("GET", path, params=params or {}) as response:
                if response.status_code >= 300:
                    response.read()
                    raise make_error(self.settings, response)
                yield from response.iter_text()
        except httpx.TransportError as error:
            raise self._make_unreachable(error) from error

    @contextmanager
    def open_stream(self, path: str, last_id: str | None) -> Iterator[httpx.Response]:
        """Open the stream of events after `last_id`, without retries.

        Raise ClientError or httpx.TransportError.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        headers |= {} if last_id is None else {"Last-Event-ID": last_id}
        with self._http.stream("GET", path, headers=headers, timeout=STREAM_TIMEOUTS) as response:
            if response.status_code >= 300:
                response.read()
                raise make_error(self.settings, response)
            content_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
            if content_type != "text/event-stream":
                reason = f"{content_type[:40]!a} instead of an event stream"
                raise UnexpectedResponse(self.settings.url, reason)
            yield response

    def _make_unreachable(self, error: httpx.TransportError) -> ServiceUnreachable:
        return ServiceUnreachable(self.settings.url, describe_error(error))


class Resource:
    """A part of the service: base of the classes whose methods are its requests."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport


def describe_error(error: Exception) -> str:
    """Return a short description of a network error."""
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    return str(error)[:200] or type(error).__name__


def api_path(*parts: str) -> str:
    """Return the path of names below /v1. Raise RequestRejected if a name would change the path."""
    for part in parts:
        if not part.strip("."):
            raise RequestRejected(
                [Fault("name", f"{part!a} is not a name", "Use a name as listed by the service.")]
            )
    return "/".join(("/v1", *(quote(part, safe="") for part in parts)))


def _choose_verification(settings: ClientSettings) -> ssl.SSLContext | bool:
    if settings.url.startswith("http://"):
        # There is nothing to verify, and loading the CA certificates takes as long as a request.
        return False
    return ssl.create_default_context(cafile=settings.ca_file)
