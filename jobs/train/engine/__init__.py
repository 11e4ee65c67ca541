"""Engines: one optimizer step over all workers."""
