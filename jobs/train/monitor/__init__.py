"""What a run reports of itself: events, metrics, ledger, progress and hung workers."""
