"""How long the service keeps what it no longer needs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jobs.spec.strict_model import StrictModel

Days = Annotated[int, Field(ge=1, le=36500)]


class RetentionConfig(StrictModel):
    """The days that ended things are kept; None keeps them for ever."""

    runs_days: Days | None = None
    """Runs since their end, with their events and their files in the store."""
    firings_days: Days | None = 90
    """Firings of schedules."""
    tokens_days: Days | None = 30
    """Tokens since they expired or were revoked."""
    keys_days: Days = 7
    """Idempotency keys: a submission can be repeated for this long."""
