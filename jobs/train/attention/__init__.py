"""Attention within each row of a batch, without a mask of L x L."""
