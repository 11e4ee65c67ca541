"""Training an adapter with `slora train`, beside what a user would take instead."""
