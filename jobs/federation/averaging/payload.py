"""Encode float32 vectors as bytes, optionally compressed, without any header.

n: numbers of the vector. k: those that top-k sends, `ceil(share n)`. Both sides know the layout, so
neither names nor shapes are sent, and the size of a payload is a formula:

    none    4 n            bf16    2 n
    int8    n + 4 tensors  a scale a tensor, and a byte a number
    topk    8 k            a position (int32) and a value (float32) each

Received bytes are not trusted: `decode` checks them and raises BadPayload.
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
"""Levels of an int8 on either side of zero."""


class BadPayload(JobsError):
    """Raised for bytes that do not encode a vector of the federation's layout."""


def compute_payload_size(compression: Compression, sizes: Sequence[int], share: float) -> int:
    """Return the bytes of an encoded vector whose tensors have these sizes."""
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
    """Encode a vector, float32 `[n]` on the CPU. `key` seeds the rounding of int8."""
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
    """Decode the bytes of `encode` as float32 `[n]`; with topk, what was not sent is zero.

    Raise BadPayload for another size, a position outside the vector or a value that is not finite.
    """
    expected_size = compute_payload_size(compression, sizes, share)
    if len(data) != expected_size:
        raise BadPayload(
            f"{len(data):,} bytes instead of {expected_size:,}: the sender has another layout"
        )
    vector_n = _decode_unchecked(data, compression, sizes)
    if not bool(torch.isfinite(vector_n).all()):
        raise BadPayload("a value is not a finite number")
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
        raise BadPayload(f"a position is outside 0..{count - 1}")
    dense = np.zeros(count, dtype=np.float32)
    dense[positions] = np.frombuffer(values, "<f4")
    return torch.from_numpy(dense)


def _encode_int8(vector_n: Tensor, sizes: Sequence[int], key: str) -> bytes:
    """Round up or down at random, so that the mean over many clients is unbiased."""
    numbers = vector_n.numpy().astype(np.float32)
    maxima = [
        float(np.abs(part).max(initial=0.0)) for part in np.split(numbers, _compute_cuts(sizes))
    ]
    scales = np.array([maximum / INT8_LEVELS for maximum in maxima], dtype=np.float32)
    steps = np.repeat(np.where(scales > 0, scales, 1).astype(np.float32), sizes)
    stream = np.random.Philox(key=np.frombuffer(_derive_seed(key), dtype=np.uint64))
    # The highest 53 bits of a raw number are uniform in [0, 1), in any release of NumPy.
    noise = (stream.random_raw(numbers.size) >> np.uint64(11)) * 2.0**-53
    levels = np.clip(np.floor(numbers / steps + noise), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
    return scales.astype("<f4").tobytes() + levels.tobytes()


def _count_topk(count: int, share: float) -> int:
    return math.ceil(share * count)


def _compute_cuts(sizes: Sequence[int]) -> list[int]:
    return np.cumsum(sizes)[:-1].tolist() if len(sizes) else []


def _derive_seed(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:16]
