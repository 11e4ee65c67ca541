"""Memory that a worker keeps for its next step, instead of giving it back to the kernel."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's `mallopt`."""
KEPT_BYTES = 1 << 30
"""Freed memory that is kept, and the size of a block that is."""
OLD_GLIBC_BYTES = 32 << 20
"""The largest threshold that older releases of glibc accept."""


def keep_freed_memory() -> bool:
    """Let malloc reuse freed blocks, and return whether this C library can.

    A step on a CPU allocates and frees the same activations each time. By default glibc gives them
    back, and the kernel then clears every page again: of SmolLM2, LoRA, 4 x 128 tokens in bfloat16,
    76,000 pages a step. Without that a step takes 0.87 x the processor's time, and the peak is 3 %
    higher. In float32, whose steps take longer, it would cost up to a tenth of the peak. The arena
    of a thread holds blocks of up to 64 MB.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Any option ends glibc's own adaptation, so without the first the second must not be set.
    has_threshold = set_option(MMAP_THRESHOLD, KEPT_BYTES) or set_option(
        MMAP_THRESHOLD, OLD_GLIBC_BYTES
    )
    return bool(has_threshold and set_option(TRIM_THRESHOLD, KEPT_BYTES))
