"""Lists of the service as iterators, in pages or in one response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from orchestrator.client.errors import UnexpectedResponse
from orchestrator.client.transport import Transport
from orchestrator.schemas.base import ResponseSchema

Value = TypeVar("Value", bound=ResponseSchema)

PAGE_SIZE = 100


def iterate_pages(
    transport: Transport,
    path: str,
    value_type: type[Value],
    *,
    max_items: int | None = None,
    timeout_s: float | None = None,
    **filters: Any,
) -> Iterator[Value]:
    """Iterate over all items, or the first `max_items`; fetch each page when it is needed."""
    cursor: str | None = None
    remaining = max_items
    while remaining is None or remaining > 0:
        limit = PAGE_SIZE if remaining is None else min(PAGE_SIZE, remaining)
        params = {**filters, "limit": limit, "cursor": cursor}
        page = transport.request_json("GET", path, params=params, timeout_s=timeout_s)
        page_items = read_items(transport, page)
        for item in page_items[:remaining]:
            yield transport.parse(value_type, item)
        remaining = None if remaining is None else remaining - len(page_items)
        next_cursor = page.get("next")
        if not isinstance(next_cursor, str) or next_cursor == cursor:
            return
        cursor = next_cursor


def iterate_unpaged(transport: Transport, path: str, value_type: type[Value]) -> Iterator[Value]:
    """Iterate over a list that comes in one response, and whose route has no `limit`."""
    for item in read_items(transport, transport.request_json("GET", path)):
        yield transport.parse(value_type, item)


def read_items(transport: Transport, page: Any) -> list[Any]:
    """Return the items of one page. Raise UnexpectedResponse if it has none."""
    items = page.get("items") if isinstance(page, dict) else None
    if not isinstance(items, list):
        raise UnexpectedResponse(transport.settings.url, "a list without items")
    return items
