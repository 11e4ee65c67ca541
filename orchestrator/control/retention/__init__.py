"""Delete what is older than the operator wants to keep."""
