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
from slora.masks.choose import top

Compress = Literal["none", "bf16", "topk", "int8"]
LEVELS = 127
"""Of an int8 on either side of zero."""


class BadPayload(JobsError):
    """Bytes that are no vector of the federation's layout."""


def payload_size(how: Compress, sizes: Sequence[int], share: float) -> int:
    """Bytes of a vector whose tensors have these sizes."""
    count = sum(sizes)
    return {
        "none": 4 * count,
        "bf16": 2 * count,
        "int8": count + 4 * len(sizes),
        "topk": 8 * _kept(count, share),
    }[how]


def encode(
    vector_n: Tensor, how: Compress, sizes: Sequence[int], share: float, *, key: str
) -> bytes:
    """The vector, float32 `[n]` on the CPU, as bytes. `key` seeds what int8 rounds by."""
    if how == "none":
        return vector_n.numpy().astype("<f4", copy=False).tobytes()
    if how == "bf16":
        return vector_n.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    if how == "int8":
        return _to_int8(vector_n, sizes, key)
    positions = top(vector_n.abs(), _kept(vector_n.numel(), share))
    values = vector_n[positions].numpy().astype("<f4")
    return positions.numpy().astype("<i4").tobytes() + values.tobytes()


def decode(data: bytes, how: Compress, sizes: Sequence[int], share: float) -> Tensor:
    """What `encode` made, float32 `[n]`. Raises BadPayload for another size, place, or no number.

    Reading 0 to n - 1 of `topk`, what was not sent is zero.
    """
    wanted = payload_size(how, sizes, share)
    if len(data) != wanted:
        raise BadPayload(f"{len(data):,} bytes instead of {wanted:,}: another layout was sent")
    found = _decoded(data, how, sizes)
    if not bool(torch.isfinite(found).all()):
        raise BadPayload("it has a value that is no number")
    return found


def _decoded(data: bytes, how: Compress, sizes: Sequence[int]) -> Tensor:
    count = sum(sizes)
    if how == "none":
        return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
    if how == "bf16":
        raw = torch.from_numpy(np.frombuffer(data, "<i2").astype(np.int16))
        return raw.view(torch.bfloat16).float()
    if how == "int8":
        scales = np.frombuffer(data, "<f4", count=len(sizes)).astype(np.float32)
        levels = np.frombuffer(data, np.int8, offset=4 * len(sizes)).astype(np.float32)
        return torch.from_numpy(levels * np.repeat(scales, sizes))
    positions, values = np.frombuffer(data, "<i4", count=len(data) // 8), data[len(data) // 2 :]
    if positions.size and (int(positions.min()) < 0 or int(positions.max()) >= count):
        raise BadPayload(f"it has a position outside 0..{count - 1}")
    found = np.zeros(count, dtype=np.float32)
    found[positions] = np.frombuffer(values, "<f4")
    return torch.from_numpy(found)


def _to_int8(vector_n: Tensor, sizes: Sequence[int], key: str) -> bytes:
    """Rounded up or down at random, so that a value's mean over many clients is the value."""
    numbers = vector_n.numpy().astype(np.float32)
    highest = [float(np.abs(part).max(initial=0.0)) for part in np.split(numbers, _cuts(sizes))]
    scales = np.array([high / LEVELS for high in highest], dtype=np.float32)
    spread = np.repeat(np.where(scales > 0, scales, 1).astype(np.float32), sizes)
    stream = np.random.Philox(key=np.frombuffer(_seed(key), dtype=np.uint64))
    # The highest 53 bits of a raw number are a uniform one below 1, in any release of NumPy.
    above = (stream.random_raw(numbers.size) >> np.uint64(11)) * 2.0**-53
    levels = np.clip(np.floor(numbers / spread + above), -LEVELS, LEVELS).astype(np.int8)
    return scales.astype("<f4").tobytes() + levels.tobytes()


def _kept(count: int, share: float) -> int:
    return math.ceil(share * count)


def _cuts(sizes: Sequence[int]) -> list[int]:
    return np.cumsum(sizes)[:-1].tolist() if len(sizes) else []


def _seed(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:16]
