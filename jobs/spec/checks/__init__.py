"""Checks of a spec across its keys, which need neither files nor a cluster."""
