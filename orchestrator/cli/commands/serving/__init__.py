"""Commands about inference servers."""
