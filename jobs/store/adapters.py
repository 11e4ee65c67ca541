"""Adapters in the store, from one door: commit, list, resolve, verify, pull, promote, remove."""

from __future__ import annotations

from jobs.store.commit import commit
from jobs.store.lineage import list_ancestors
from jobs.store.listing import list_broken_adapters, list_adapters, resolve_adapter, split_name, scan_adapters
from jobs.store.pointer import promote, promote_after, read_pointer, rollback, promote_if_unset
from jobs.store.pull import pull
from jobs.store.removal import delete_version, collect_garbage
from jobs.store.verify import verify_adapter
from jobs.store.versions import list_all_versions, list_versions

__all__ = [
    "list_all_versions",
    "list_ancestors",
    "list_broken_adapters",
    "commit",
    "list_versions",
    "delete_version",
    "collect_garbage",
    "list_adapters",
    "promote",
    "promote_after",
    "pull",
    "read_pointer",
    "resolve_adapter",
    "rollback",
    "promote_if_unset",
    "split_name",
    "scan_adapters",
    "verify_adapter",
]
