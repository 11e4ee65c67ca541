"""Copy a registry to a file while it is used, and restore it from there."""
