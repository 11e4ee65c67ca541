"""The estimate of what a run holds, sends, takes and costs, from its spec and headers."""
