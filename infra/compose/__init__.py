"""The stack on one host, in containers."""
