"""What a worker of a search is told to train, and what it tells back: plain values both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobs.request import Request
from jobs.search.sharing import Keys


@dataclass(frozen=True)
class Order:
    """One trial for one worker. Crosses processes by pickle."""

    request: Request
    search: str
    """The search's run id, below which lies what trials share."""
    metric: str
    """What an evaluation calls the search's metric."""
    keys: Keys
    have: frozenset[str] = frozenset()
    """What was there already when the trial began: all its workers must think alike."""


@dataclass(frozen=True)
class Report:
    """An evaluation on the way, or the end."""

    step: int
    metrics: dict[str, float]
    tokens: int
    ended: bool = False
    failed: str = ""
    """Why, where it failed in a way that would repeat."""
    taken: tuple[str, ...] = field(default=())
    """What it took over instead of doing it."""

    def plain(self) -> dict[str, Any]:
        """For Tune, whose results are flat dictionaries."""
        return {
            **self.metrics,
            "step": self.step,
            "tokens": self.tokens,
            "ended": self.ended,
            "failed": self.failed,
        }
