"""Keys: the names of objects in a store, checked before any store sees them."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import Fault, InputError

MAX_KEY_BYTES = 1024
"""S3's limit, so that what a directory takes a bucket takes too."""

HIDDEN_PREFIX = ".tmp"
"""What starts so at the top of a store is a write under way, and no object."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a store says of an object without sending it."""

    size: int
    etag: str = ""
    """Another one for other bytes; what compare-and-swap compares."""
    modified: float = 0.0
    """Seconds since 1970, by the store's own clock."""


@dataclass(frozen=True)
class Leftover:
    """What a writer left that died while it wrote: no object, and nobody reads it."""

    name: str
    size: int
    modified: float
    upload_id: str | None = None
    """The id of an unfinished multipart upload."""


def check_key(key: str) -> str:
    """The key itself, or InputError: keys come from names and manifests that others wrote."""
    problem = _find_problem(key)
    if problem:
        remedy = "Use names of letters, digits, dots, dashes and underscores, joined by '/'."
        raise InputError([Fault("key", f"{key[:100]!a} {problem}", remedy)])
    return key


def _find_problem(key: str) -> str:
    parts = key.split("/")
    if not key:
        return "is empty"
    if len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        return f"is longer than {MAX_KEY_BYTES} bytes"
    # Printable excludes control characters, text direction marks and lone surrogates.
    if not key.isprintable():
        return "holds characters that can't be printed"
    if "\\" in key:
        return "holds a backslash"
    if key.startswith("/"):
        return "is absolute"
    if not all(parts):
        return "has an empty part"
    if "." in parts or ".." in parts:
        return "has a part that is '.' or '..'"
    if parts[0].startswith(HIDDEN_PREFIX):
        return f"starts with {HIDDEN_PREFIX!r}, which the store keeps for itself"
    return ""
