"""Reports of a run: events, metrics, ledger, progress and hung workers."""
