"""Adapters in the store, from one door: commit, list, resolve, verify, pull."""

from __future__ import annotations

from jobs.store.commit import commit
from jobs.store.listing import broken_adapters, list_adapters, resolve, survey
from jobs.store.pull import pull
from jobs.store.verify import verify

__all__ = ["broken_adapters", "commit", "list_adapters", "pull", "resolve", "survey", "verify"]
