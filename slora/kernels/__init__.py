"""Kernels of `g^T x` at a mask's entries, and the probe that chooses among them."""
