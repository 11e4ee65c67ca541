"""Encode, check and average what the clients of a federation send."""
