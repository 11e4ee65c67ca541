"""What travels: vectors of float32 as bytes, whole or compressed, with nothing around them.

n: numbers of the vector. k: those that top-k sends, `ceil(share n)`. Both sides know the layout, so
neither names nor shapes travel, and the size of a payload is a formula:

    none    4 n            bf16    2 n
    int8    n + 4 tensors  a scale a tensor, and a byte a number
    topk    8 k            a position (int32) and a value (float32) each

What arrives is hostile until it is checked: `decode` raises BadPayload.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jobs.errors import JobsError
from slora.masks.selection import select_top

Compression = Literal["none", "bf16", "topk", "int8"]
INT8_LEVELS = 127
"""Of an int8 on either side of zero."""


class BadPayload(JobsError):
    """Bytes that are no vector of the federation's layout."""


def compute_payload_size(compression: Compression, sizes: Sequence[int], share: float) -> int:
    """Bytes of a vector whose tensors have these sizes."""
    count = sum(sizes)
    return {
        "none": 4 * count,
        "bf16": 2 * count,
        "int8": count + 4 * len(sizes),
        "topk": 8 * _count_topk(count, share),
    }[compression]


def encode(
    vector_n: Tensor, compression: Compression, sizes: Sequence[int], share: float, *, key: str
) -> bytes:
    """The vector, float32 `[n]` on the CPU, as bytes. `key` seeds what int8 rounds by."""
    if compression == "none":
        return vector_n.numpy().astype("<f4", copy=False).tobytes()
    if compression == "bf16":
        return vector_n.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    if compression == "int8":
        return _encode_int8(vector_n, sizes, key)
    positions = select_top(vector_n.abs(), _count_topk(vector_n.numel(), share))
    values = vector_n[positions].numpy().astype("<f4")
    return positions.numpy().astype("<i4").tobytes() + values.tobytes()


def decode(data: bytes, compression: Compression, sizes: Sequence[int], share: float) -> Tensor:
    """What `encode` made, float32 `[n]`. Raises BadPayload for another size, place, or no number.

    Reading 0 to n - 1 of `topk`, what was not sent is zero.
    """
    expected_size = compute_payload_size(compression, sizes, share)
    if len(data) != expected_size:
        raise BadPayload(
            f"{len(data):,} bytes instead of {expected_size:,}: another layout was sent"
        )
    vector_n = _decode_unchecked(data, compression, sizes)
    if not bool(torch.isfinite(vector_n).all()):
        raise BadPayload("it has a value that is no number")
    return vector_n


def _decode_unchecked(data: bytes, compression: Compression, sizes: Sequence[int]) -> Tensor:
    count = sum(sizes)
    if compression == "none":
        return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
    if compression == "bf16":
        raw = torch.from_numpy(np.frombuffer(data, "<i2").astype(np.int16))
        return raw.view(torch.bfloat16).float()
    if compression == "int8":
        scales = np.frombuffer(data, "<f4", count=len(sizes)).astype(np.float32)
        levels = np.frombuffer(data, np.int8, offset=4 * len(sizes)).astype(np.float32)
        return torch.from_numpy(levels * np.repeat(scales, sizes))
    positions, values = np.frombuffer(data, "<i4", count=len(data) // 8), data[len(data) // 2 :]
    if positions.size and (int(positions.min()) < 0 or int(positions.max()) >= count):
        raise BadPayload(f"it has a position outside 0..{count - 1}")
    dense = np.zeros(count, dtype=np.float32)
    dense[positions] = np.frombuffer(values, "<f4")
    return torch.from_numpy(dense)


def _encode_int8(vector_n: Tensor, sizes: Sequence[int], key: str) -> bytes:
    """Rounded up or down at random, so that a value's mean over many clients is the value."""
    numbers = vector_n.numpy().astype(np.float32)
    maxima = [
        float(np.abs(part).max(initial=0.0)) for part in np.split(numbers, _compute_cuts(sizes))
    ]
    scales = np.array([maximum / INT8_LEVELS for maximum in maxima], dtype=np.float32)
    steps = np.repeat(np.where(scales > 0, scales, 1).astype(np.float32), sizes)
    stream = np.random.Philox(key=np.frombuffer(_derive_seed(key), dtype=np.uint64))
    # The highest 53 bits of a raw number are a uniform one below 1, in any release of NumPy.
    noise = (stream.random_raw(numbers.size) >> np.uint64(11)) * 2.0**-53
    levels = np.clip(np.floor(numbers / steps + noise), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
    return scales.astype("<f4").tobytes() + levels.tobytes()


def _count_topk(count: int, share: float) -> int:
    return math.ceil(share * count)


def _compute_cuts(sizes: Sequence[int]) -> list[int]:
    return np.cumsum(sizes)[:-1].tolist() if len(sizes) else []


def _derive_seed(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:16]
