"""The hand-off from the sparse to the low-rank stage, and the other inits of low-rank factors."""
