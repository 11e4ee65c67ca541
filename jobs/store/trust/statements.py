"""The statements that are signed: canonical JSON, each with a version tag of its own.

A reader never parses a signed statement. It builds the statement from what it has read itself, so a
signature that was made for another name, version, run, project or pointer does not fit.
"""

from __future__ import annotations

import hashlib
import json
import re

from jobs.spec.limits import NAME_PATTERN

VERSION_TAG, POINTER_TAG = "slora/version/2", "slora/pointer/1"
OPERATOR_PROJECT = "default"
"""The project whose store is the configured store itself."""

_PROJECT_STORE = re.compile(r"(?:^|/)projects/([^/]+)/*$")

Statement = dict[str, str | int]


def describe_version(
    *, project: str, run: str, name: str, version: int, manifest: bytes
) -> Statement:
    """Return the statement that a run of a project made this version, with this manifest."""
    return {
        "statement": VERSION_TAG,
        "project": project,
        "run": run,
        "name": name,
        "version": version,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }


def describe_pointer(
    *, project: str, name: str, version: int, move: int, content: bytes
) -> Statement:
    """Return the statement that move number `move` pointed a name at a version.

    `content` is the pointer without its signature: its history is signed too.
    """
    return {
        "statement": POINTER_TAG,
        "project": project,
        "name": name,
        "version": version,
        "move": move,
        "pointer_sha256": hashlib.sha256(content).hexdigest(),
    }


def encode_statement(statement: Statement) -> bytes:
    """Return the bytes that are signed: sorted names, no spaces, ASCII."""
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def find_project(store_url: str) -> str:
    """Return the project of a store: P for `.../projects/P`, else that of the operator."""
    match = _PROJECT_STORE.search(store_url)
    if match is None or not re.fullmatch(NAME_PATTERN, match[1]):
        return OPERATOR_PROJECT
    return match[1]
