"""The registry: what was asked for, what came of it, and who may act, in a database."""
