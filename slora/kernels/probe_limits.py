"""What a probe of kernels takes, for plans too. No torch."""

from __future__ import annotations

MIN_PROBED_WORK = 1 << 25
"""Multiplications of the dense product below which dense slabs are taken without a probe. It takes
about a millisecond then, and a probe would cost more than it could save."""
COMPILER_BYTES = 125_000_000
"""Memory of numba and LLVM in a process that has compiled or loaded a kernel: 60 MB with the import
and 65 MB with the first kernel, measured with numba 0.68."""
