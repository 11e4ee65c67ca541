"""Rebuild the registry from what the store holds: runs, adapters and searches."""
