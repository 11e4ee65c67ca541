"""All operations on adapters: commit, list, resolve, verify, pull, promote, delete."""

from __future__ import annotations

from jobs.store.adapters.commit import commit
from jobs.store.adapters.lineage import list_ancestors
from jobs.store.adapters.listing import (
    resolve_adapter,
    scan_adapters,
    split_name,
)
from jobs.store.adapters.pointer import (
    promote,
    promote_after,
    promote_if_unset,
    read_pointer,
    rollback,
)
from jobs.store.adapters.pull import pull
from jobs.store.adapters.removal import collect_garbage, delete_version
from jobs.store.adapters.verify import verify_adapter
from jobs.store.adapters.versions import list_all_versions, list_versions

__all__ = [
    "collect_garbage",
    "commit",
    "delete_version",
    "list_all_versions",
    "list_ancestors",
    "list_versions",
    "promote",
    "promote_after",
    "promote_if_unset",
    "pull",
    "read_pointer",
    "resolve_adapter",
    "rollback",
    "scan_adapters",
    "split_name",
    "verify_adapter",
]
