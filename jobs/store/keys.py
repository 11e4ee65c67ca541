"""Check the keys of objects before any store sees them."""

from __future__ import annotations

from jobs.errors import Fault, InputError

MAX_KEY_BYTES = 1024
"""The limit of S3, so that a bucket accepts every key that a directory accepts."""

DEPLOYMENTS_PREFIX = "deployments/"
MAX_DEPLOYMENT_BYTES = 1 << 20
"""Bytes of the record of a deployment below that prefix; a longer object is none."""

HIDDEN_PREFIX = ".tmp"
"""The start of a top-level name that is no object: an unfinished write, or a probe."""


def check_key(key: str) -> str:
    """Return the key, or raise InputError: keys come from names and manifests of other writers."""
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
        return "contains characters that cannot be printed"
    if "\\" in key:
        return "contains a backslash"
    if key.startswith("/"):
        return "is absolute"
    if not all(parts):
        return "has an empty part"
    if "." in parts or ".." in parts:
        return "has a part that is '.' or '..'"
    if parts[0].startswith(HIDDEN_PREFIX):
        return f"starts with {HIDDEN_PREFIX!r}, which is reserved for the store"
    return ""
