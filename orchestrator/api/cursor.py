"""Pages of a list: the cursor is the key of the last row, opaque to clients and validated."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.errors import Fault, InputError
from orchestrator.schemas.base import Page, ResponseSchema

PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
MAX_CURSOR_CHARS = 4096

Limit = Annotated[
    int, Query(ge=1, le=MAX_PAGE_SIZE, description="Maximum number of rows per page.")
]
Cursor = Annotated[
    str | None,
    Query(
        max_length=MAX_CURSOR_CHARS,
        description="Value of `next` in the previous page. Use it with the same filters.",
    ),
]


class PageKey(BaseModel):
    """Key of a row in the order of its list."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


PageKeyT = TypeVar("PageKeyT", bound=PageKey)
ResponseT = TypeVar("ResponseT", bound=ResponseSchema)


def encode_cursor(key: PageKey) -> str:
    """Return the cursor of a row."""
    values = [*key.model_dump().values()]
    return (
        urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")
    )


def decode_cursor(key_type: type[PageKeyT], cursor: str | None) -> PageKeyT | None:
    """Return the key that a cursor encodes. Raise InputError if it is invalid."""
    if cursor is None:
        return None
    try:
        values: Any = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != len(key_type.model_fields):
            raise ValueError
        key = key_type.model_validate(dict(zip(key_type.model_fields, values, strict=True)))
        # A row has exactly one cursor: another spelling of the same key is not ours.
        if encode_cursor(key) != cursor:
            raise ValueError
    except (ValueError, ValidationError, RecursionError):
        remedy = "Use the value of `next` in a page, or omit it."
        raise InputError([Fault("cursor", "not a cursor of this list", remedy)]) from None
    return key


def make_page(
    response_type: type[ResponseT], key_type: type[PageKey], records: Sequence[Any], limit: int
) -> Page[ResponseT]:
    """Return the page of at most `limit` records; one record more than that means another page."""
    next_cursor = None
    if len(records) > limit:
        last = key_type.model_validate(records[limit - 1], from_attributes=True)
        next_cursor = encode_cursor(last)
    items = [response_type.model_validate(record) for record in records[:limit]]
    return Page(items=items, next=next_cursor)
