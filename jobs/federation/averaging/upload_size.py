"""The bytes of an update on its way to the server. No torch, no numpy: plans count them too.

A group is the part of the trained numbers that shares a learning rate: the adapter, and the head.
n_g: its numbers.

    none    4 n            bf16    2 n
    int8    n + 4 tensors  a scale a tensor, and a byte a number
    topk    8 k            a position (int32) and a value (float32) each; k = sum of ceil(share n_g)

Of each group the same share is sent: a head at fifty times the adapter's rate has the largest
changes, and would else be most of what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Compression = Literal["none", "bf16", "topk", "int8"]
GROUPS = ("adapter", "head")
"""The groups, in the order of their numbers."""
FLOAT32, BFLOAT16, INT8, POSITION = 4, 2, 1, 4
"""Bytes of a number and of a position."""


def compute_upload_size(
    compression: Compression, group_sizes: Sequence[int], tensors: int, share: float
) -> int:
    """Return the bytes of an update whose groups have these numbers, in this many tensors."""
    count = sum(group_sizes)
    return {
        "none": FLOAT32 * count,
        "bf16": BFLOAT16 * count,
        "int8": INT8 * count + FLOAT32 * tensors,
        "topk": (POSITION + FLOAT32) * sum(count_topk(group_sizes, share)),
    }[compression]


def count_topk(group_sizes: Sequence[int], share: float) -> tuple[int, ...]:
    """Return how many numbers of each group `topk` sends."""
    return tuple(math.ceil(share * size) for size in group_sizes)
