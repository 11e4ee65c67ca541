"""Compute SHA-256 digests of streams and files piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20


def compute_sha256(stream: BinaryIO, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the digest of the rest of a stream. Call `on_bytes` with the length of each piece."""
    digest = hashlib.sha256()
    while piece := stream.read(CHUNK):
        digest.update(piece)
        if on_bytes:
            on_bytes(len(piece))
    return digest.hexdigest()


def copy_and_digest(source: BinaryIO, target: BinaryIO) -> str:
    """Copy the rest of a stream, and return the digest of the copied bytes."""
    digest = hashlib.sha256()
    while piece := source.read(CHUNK):
        target.write(piece)
        digest.update(piece)
    return digest.hexdigest()


def compute_file_sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return compute_sha256(file)
