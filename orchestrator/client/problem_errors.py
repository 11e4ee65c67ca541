"""Problem documents (RFC 9457) as errors of the client."""

from __future__ import annotations

import json
from typing import Any

import httpx

from jobs.errors import Fault
from orchestrator.client.client_settings import ClientSettings
from orchestrator.client.errors import (
    AccessDenied,
    ClientError,
    Conflict,
    MissingResource,
    RequestRejected,
    ServiceError,
    ServiceUnreachable,
    TooManyRequests,
    UnexpectedResponse,
)
from orchestrator.schemas.problems import MEDIA_TYPE

RETRIABLE_STATUSES = frozenset({502, 503, 504})
"""The service, or a proxy in front of it, asks for a retry."""
MAX_TEXT_CHARS = 2000
MAX_RETRY_AFTER_S = 30.0


def make_error(settings: ClientSettings, response: httpx.Response) -> ClientError:
    """Return the error for a response with a status of 300 or more. Its body has to be read."""
    status, problem = response.status_code, _parse_problem(response)
    reason = _get_text(problem, "detail") or _get_text(problem, "title") or response.reason_phrase
    return _choose_error(settings, status, problem, reason)


def make_stream_error(settings: ClientSettings, data: str) -> ClientError:
    """Return the error for the problem document that ended a stream."""
    try:
        problem = json.loads(data)
    except ValueError:
        problem = None
    status = problem.get("status") if isinstance(problem, dict) else None
    if not isinstance(status, int):
        return UnexpectedResponse(settings.url, "an event without a problem document")
    return _choose_error(settings, status, problem, _get_text(problem, "detail"))


def _choose_error(
    settings: ClientSettings, status: int, problem: dict[str, Any] | None, reason: str
) -> ClientError:
    url = settings.url
    if status == 429:
        return TooManyRequests(url, reason)
    if status in RETRIABLE_STATUSES:
        return ServiceUnreachable(url, reason)
    if problem is None and status < 500:
        return UnexpectedResponse(url, f"{status} {reason}, without a problem document")
    if status == 401:
        reason = "the token is not valid" if settings.token else "a token is required"
        return AccessDenied(url, reason, settings.token_source)
    if status == 403:
        return AccessDenied(url, reason, settings.token_source)
    if status == 404:
        return MissingResource(reason)
    if status == 409:
        return Conflict(reason)
    if status < 500:
        return RequestRejected(_parse_faults(problem) or [Fault("request", reason.rstrip("."))])
    return ServiceError(url, status, reason)


def read_retry_after(response: httpx.Response) -> float:
    """Return the seconds that the service asks to wait, up to a limit."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), MAX_RETRY_AFTER_S) if value.isdigit() else 0.0


def _parse_problem(response: httpx.Response) -> dict[str, Any] | None:
    if response.headers.get("Content-Type", "").partition(";")[0].strip() != MEDIA_TYPE:
        return None
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _parse_faults(problem: dict[str, Any] | None) -> list[Fault]:
    entries = (problem or {}).get("errors")
    valid_entries = entries if isinstance(entries, list) else []
    return [
        Fault(
            _get_text(entry, "key"),
            _get_text(entry, "problem").rstrip("."),
            _get_text(entry, "remedy"),
        )
        for entry in valid_entries
        if isinstance(entry, dict)
    ]


def _get_text(body: dict[str, Any] | None, key: str) -> str:
    value = (body or {}).get(key)
    return value[:MAX_TEXT_CHARS] if isinstance(value, str) else ""
