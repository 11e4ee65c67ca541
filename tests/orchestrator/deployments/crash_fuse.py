"""Counts the calls of a rollout to its store and its server, and ends it at one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.jobs.store.builders import Killed

WRITES = frozenset({"put", "delete", "load", "set_name", "unload", "score", "ask"})
"""Calls that change or measure something."""


class Fuse:
    """Blows at the `at`-th of the calls that it watches, before its effect or after it."""

    def __init__(self, at: int, *, is_after: bool, watched: frozenset[str] = WRITES) -> None:
        self.at, self.is_after, self.watched = at, is_after, watched
        self.calls = 0

    def blow(self) -> None:
        raise Killed

    def wrap(self, part: Any) -> Any:
        return _Fused(part, self)


class _Fused:
    def __init__(self, part: Any, fuse: Fuse) -> None:
        self._part, self._fuse = part, fuse

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        return self._guard(value) if name in self._fuse.watched else value

    def _guard(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **options: Any) -> Any:
            fuse = self._fuse
            fuse.calls += 1
            if fuse.calls == fuse.at and not fuse.is_after:
                fuse.blow()
            result = call(*args, **options)
            if fuse.calls == fuse.at:
                fuse.blow()
            return result

        return guarded
