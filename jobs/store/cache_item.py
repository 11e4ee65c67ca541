"""An object of a bucket that is copied to this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheItem:
    """An object to fetch."""

    key: str
    name: str
    size: int
    etag: str
