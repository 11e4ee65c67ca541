"""Commands that answer with adapters."""
