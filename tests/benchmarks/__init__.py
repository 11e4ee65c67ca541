"""Measurements: each module runs by itself, prints medians, and takes --json."""
