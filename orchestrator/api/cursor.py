"""Where a list goes on: the last row's key, opaque for who carries it, checked when it is back."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Any, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.errors import Fault, InputError

PAGE = 50
LARGEST_PAGE = 500
LONGEST = 4096

Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="Rows of a page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=LONGEST, description="`next` of the page before; the same filters with it."),
]


class Place(BaseModel):
    """A row's key in the order of its list."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Place)


def written(place: Place) -> str:
    """The cursor of a row."""
    values = [*place.model_dump().values()]
    return (
        urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")
    )


def read(kind: type[Kind], cursor: str | None) -> Kind | None:
    """The place that a cursor names. Raises InputError."""
    if cursor is None:
        return None
    try:
        values: Any = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != len(kind.model_fields):
            raise ValueError
        found = kind.model_validate(dict(zip(kind.model_fields, values, strict=True)))
        # One row has one cursor: what decodes to the same and is written otherwise is not ours.
        if written(found) != cursor:
            raise ValueError
    except (ValueError, ValidationError, RecursionError):
        remedy = "Use `next` of a page, or begin without."
        raise InputError([Fault("cursor", "it is none of this list's", remedy)]) from None
    return found
