"""The schema of a spec, and everything that reads or validates one. No torch."""
