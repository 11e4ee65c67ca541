"""Versions of the tables: each a step up and the same step down."""
