"""Adapters in the store, from one door: commit, list, resolve, verify, pull, promote, remove."""

from __future__ import annotations

from jobs.store.commit import commit
from jobs.store.lineage import ancestors
from jobs.store.listing import broken_adapters, list_adapters, resolve, split_name, survey
from jobs.store.pointer import promote, promote_after, read_pointer, rollback, settle
from jobs.store.pull import pull
from jobs.store.removal import delete, gc
from jobs.store.verify import verify
from jobs.store.versions import all_versions, committed_versions

__all__ = [
    "all_versions",
    "ancestors",
    "broken_adapters",
    "commit",
    "committed_versions",
    "delete",
    "gc",
    "list_adapters",
    "promote",
    "promote_after",
    "pull",
    "read_pointer",
    "resolve",
    "rollback",
    "settle",
    "split_name",
    "survey",
    "verify",
]
