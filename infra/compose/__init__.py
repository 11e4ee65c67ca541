"""The whole on one host, in containers."""
