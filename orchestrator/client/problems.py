"""An answer that is none: a problem document turned into the house's errors."""

from __future__ import annotations

from typing import Any

import httpx

from jobs.errors import Fault
from orchestrator.client.errors import (
    ClientError,
    Conflict,
    NotAllowed,
    NotThere,
    NotUnderstood,
    Refused,
    ServiceFailed,
    ServiceUnreachable,
)
from orchestrator.client.settings import Settings

MEDIA = "application/problem+json"
AWAY = frozenset({429, 502, 503, 504})
"""The service, or who stands before it, asks to come back."""
LONGEST = 2000
LONGEST_PAUSE_S = 30.0


def error_of(settings: Settings, answer: httpx.Response) -> ClientError:
    """What an answer of 300 or more means. Its body has been read."""
    url, status, problem = settings.service, answer.status_code, _problem(answer)
    why = _text(problem, "detail") or _text(problem, "title") or answer.reason_phrase
    if status in AWAY:
        return ServiceUnreachable(url, why)
    if problem is None and status < 500:
        return NotUnderstood(url, f"{status} {why}, and no word of the service about it")
    if status == 401:
        why = "it knows no such token" if settings.token else "it wants a token"
        return NotAllowed(url, why, settings.source)
    if status == 403:
        return NotAllowed(url, why, settings.source)
    if status == 404:
        return NotThere(why)
    if status == 409:
        return Conflict(why)
    if status < 500:
        return Refused(_faults(problem) or [Fault("request", why.rstrip("."))])
    return ServiceFailed(url, status, why)


def pause_asked(answer: httpx.Response) -> float:
    """Seconds that the service asks to wait, within reason."""
    said = answer.headers.get("Retry-After", "")
    return min(float(said), LONGEST_PAUSE_S) if said.isdigit() else 0.0


def _problem(answer: httpx.Response) -> dict[str, Any] | None:
    if answer.headers.get("Content-Type", "").partition(";")[0].strip() != MEDIA:
        return None
    try:
        body = answer.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _faults(problem: dict[str, Any] | None) -> list[Fault]:
    given = (problem or {}).get("faults")
    told = given if isinstance(given, list) else []
    return [
        Fault(_text(one, "where"), _text(one, "problem").rstrip("."), _text(one, "remedy"))
        for one in told
        if isinstance(one, dict)
    ]


def _text(body: dict[str, Any] | None, key: str) -> str:
    found = (body or {}).get(key)
    return found[:LONGEST] if isinstance(found, str) else ""
