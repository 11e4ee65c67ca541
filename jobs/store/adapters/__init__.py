"""Adapters in the store: commit, list, resolve, verify, pull, promote, delete."""
