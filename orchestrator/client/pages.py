"""Lists, a page at a time or in one piece, as iterators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from orchestrator.client.errors import UnexpectedResponse
from orchestrator.client.transport import Transport

Value = TypeVar("Value")

PAGE_SIZE = 100


def iterate_pages(
    transport: Transport,
    path: str,
    parse: Callable[[Any], Value],
    *,
    max_items: int | None = None,
    timeout_s: float | None = None,
    **filters: Any,
) -> Iterator[Value]:
    """Every item, or the first `most`; the next page is asked for when it is needed."""
    cursor: str | None = None
    remaining = max_items
    while remaining is None or remaining > 0:
        limit = PAGE_SIZE if remaining is None else min(PAGE_SIZE, remaining)
        params = {**filters, "limit": limit, "cursor": cursor}
        page = transport.request_json("GET", path, params=params, timeout_s=timeout_s)
        page_items = read_items(transport, page)
        # Not more than was asked for, whatever comes.
        yield from map(parse, page_items[:remaining])
        remaining = None if remaining is None else remaining - len(page_items)
        next_cursor = page.get("next")
        if not isinstance(next_cursor, str) or next_cursor == cursor:
            return
        cursor = next_cursor


def iterate_unpaged(
    transport: Transport, path: str, parse: Callable[[Any], Value]
) -> Iterator[Value]:
    """Every item of a list that comes in one piece, and whose route knows no `limit`."""
    yield from map(parse, read_items(transport, transport.request_json("GET", path)))


def read_items(transport: Transport, page: Any) -> list[Any]:
    """The items of one page. Raises NotUnderstood."""
    items = page.get("items") if isinstance(page, dict) else None
    if not isinstance(items, list):
        raise UnexpectedResponse(transport.settings.url, "a list came without its items")
    return items
