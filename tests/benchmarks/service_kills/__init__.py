"""Kill the parts of a running control plane, and count what was lost or duplicated."""
