"""A clock that stays at the time it was set to."""

from __future__ import annotations


class SettableClock:
    """A clock for tests."""

    def __init__(self, at: float) -> None:
        self.at = at

    def now(self) -> float:
        """Return the time it was set to."""
        return self.at
