"""Candidates for the method: each beside what the product does, kept only where it pays."""
