"""Data of the server-sent events of a run: its events, parts of its log, and the end."""

from __future__ import annotations

from typing import Any

from orchestrator.schemas.base import ResponseSchema

END_EVENT = "end"
"""The name of the last event of a stream."""
PROBLEM_EVENT = "problem"
"""The name of the last event of a stream whose token has become invalid."""


class EventResponse(ResponseSchema):
    """An event of a run; a reader resumes after `position`."""

    run: str
    position: int
    at: float
    kind: str
    attempt: int
    body: dict[str, Any]


class LogTextResponse(ResponseSchema):
    """A part of a run's log."""

    text: str


class EndResponse(ResponseSchema):
    """The end of a run's stream, with the run's final status."""

    status: str
    reason: str | None = None
    detail: str = ""
