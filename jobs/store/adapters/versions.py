"""Which versions of a name are committed: from keys alone, no manifest is read."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.store.adapters.manifest import parse_manifest_key
from jobs.store.base import ObjectStore


def list_versions(store: ObjectStore, name: str) -> list[int]:
    """The versions of one name that have a manifest, in order."""
    return sorted(version for _, version in _iterate_committed(store, f"adapters/{name}/"))


def list_all_versions(store: ObjectStore) -> list[tuple[str, int]]:
    """Name and version of everything committed, in order. Ten thousand take about a second."""
    return sorted(_iterate_committed(store, "adapters/"))


def _iterate_committed(store: ObjectStore, prefix: str) -> Iterator[tuple[str, int]]:
    parsed = (
        parse_manifest_key(key) for key in store.list(prefix) if key.endswith("/manifest.json")
    )
    return (pair for pair in parsed if pair is not None)
