"""Lists, a page at a time or in one piece, as iterators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from orchestrator.client.errors import NotUnderstood
from orchestrator.client.wire import Wire

Value = TypeVar("Value")

PAGE = 100


def items(
    wire: Wire,
    path: str,
    read: Callable[[Any], Value],
    *,
    most: int | None = None,
    within: float | None = None,
    **filters: Any,
) -> Iterator[Value]:
    """Every item, or the first `most`; the next page is asked for when it is needed."""
    cursor: str | None = None
    left = most
    while left is None or left > 0:
        limit = PAGE if left is None else min(PAGE, left)
        params = {**filters, "limit": limit, "cursor": cursor}
        page = wire.json("GET", path, params=params, within=within)
        found = listed(wire, page)
        # Not more than was asked for, whatever comes.
        yield from map(read, found[:left])
        left = None if left is None else left - len(found)
        following = page.get("next")
        if not isinstance(following, str) or following == cursor:
            return
        cursor = following


def whole(wire: Wire, path: str, read: Callable[[Any], Value]) -> Iterator[Value]:
    """Every item of a list that comes in one piece, and whose route knows no `limit`."""
    yield from map(read, listed(wire, wire.json("GET", path)))


def listed(wire: Wire, page: Any) -> list[Any]:
    """The items of one page. Raises NotUnderstood."""
    found = page.get("items") if isinstance(page, dict) else None
    if not isinstance(found, list):
        raise NotUnderstood(wire.settings.service, "a list came without its items")
    return found
