"""Path and query parameters that several routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from jobs.spec.limits import MAX_VERSION, NAME_PATTERN
from jobs.store.adapters.manifest import MAX_NAME_LENGTH
from jobs.store.runs.run_store import MAX_RUN_ID_LENGTH

MAX_STORE_CHARS = 1024
STORE_PATTERN = r"^[ -~]+$"

RunPath = Annotated[str, Path(pattern=NAME_PATTERN, max_length=MAX_RUN_ID_LENGTH)]
NamePath = Annotated[str, Path(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
VersionPath = Annotated[int, Path(ge=1, le=MAX_VERSION)]
TokenPath = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
NameQuery = Annotated[str | None, Query(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
StoreQuery = Annotated[
    str | None,
    Query(
        pattern=STORE_PATTERN,
        max_length=MAX_STORE_CHARS,
        description="URL of the store; required if a name exists in several stores.",
    ),
]
