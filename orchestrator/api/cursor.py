"""Where a list goes on: the last row's key, opaque for who carries it, checked when it is back."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Any, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.errors import Fault, InputError

PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
MAX_CURSOR_CHARS = 4096

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Rows of a page.")]
Cursor = Annotated[
    str | None,
    Query(
        max_length=MAX_CURSOR_CHARS,
        description="`next` of the page before; the same filters with it.",
    ),
]


class PageKey(BaseModel):
    """A row's key in the order of its list."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


PageKeyT = TypeVar("PageKeyT", bound=PageKey)


def encode_cursor(key: PageKey) -> str:
    """The cursor of a row."""
    values = [*key.model_dump().values()]
    return (
        urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")
    )


def decode_cursor(key_type: type[PageKeyT], cursor: str | None) -> PageKeyT | None:
    """The place that a cursor names. Raises InputError."""
    if cursor is None:
        return None
    try:
        values: Any = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != len(key_type.model_fields):
            raise ValueError
        key = key_type.model_validate(dict(zip(key_type.model_fields, values, strict=True)))
        # One row has one cursor: what decodes to the same and is written otherwise is not ours.
        if encode_cursor(key) != cursor:
            raise ValueError
    except (ValueError, ValidationError, RecursionError):
        remedy = "Use `next` of a page, or begin without."
        raise InputError([Fault("cursor", "it is none of this list's", remedy)]) from None
    return key
