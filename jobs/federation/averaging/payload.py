"""Encode float32 vectors as bytes, optionally compressed, without any header.

n: numbers of the vector. Both sides know the layout, so neither names nor shapes are sent, and the
size of a payload is a formula: see `upload_size`.

Received bytes are not trusted: `decode` checks them and raises BadPayload.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.errors import JobsError
from jobs.federation.averaging.flat_layout import VectorLayout
from jobs.federation.averaging.upload_size import (
    GROUPS,
    Compression,
    compute_upload_size,
    count_topk,
)
from slora.masks.selection import select_top

Positions = np.ndarray[Any, np.dtype[np.integer[Any]]]
INT8_LEVELS = 127
"""Levels of an int8 on either side of zero."""


class BadPayload(JobsError):
    """Raised for bytes that do not encode a vector of the federation's layout."""


@dataclass(frozen=True)
class PayloadFormat:
    """How a vector is encoded, which both sides know from the spec and the layout."""

    layout: VectorLayout
    compression: Compression = "none"
    share: float = 1.0
    """Of the numbers of each group: what topk sends."""

    @property
    def size(self) -> int:
        """Return the bytes of an encoded vector."""
        sizes = self.layout.group_sizes
        return compute_upload_size(self.compression, sizes, len(self.layout.names), self.share)


def encode(vector_n: Tensor, form: PayloadFormat, *, key: str) -> bytes:
    """Encode a vector, float32 `[n]` on the CPU. `key` seeds the rounding of int8."""
    if form.compression == "none":
        return vector_n.numpy().astype("<f4", copy=False).tobytes()
    if form.compression == "bf16":
        return vector_n.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    if form.compression == "int8":
        return _encode_int8(vector_n, form.layout.sizes, key)
    positions = _select_positions(vector_n, form)
    values = vector_n.numpy()[positions].astype("<f4")
    return positions.astype("<i4").tobytes() + values.tobytes()


def decode(data: bytes, form: PayloadFormat) -> Tensor:
    """Decode the bytes of `encode` as float32 `[n]`; with topk, what was not sent is zero.

    Raise BadPayload for another size, a position outside the vector or sent twice, more numbers of
    a group than its share, or a value that is not finite.
    """
    if len(data) != form.size:
        raise BadPayload(
            f"{len(data):,} bytes instead of {form.size:,}: the sender has another layout"
        )
    vector_n = _decode_unchecked(data, form)
    if not bool(torch.isfinite(vector_n).all()):
        raise BadPayload("a value is not a finite number")
    return vector_n


def _decode_unchecked(data: bytes, form: PayloadFormat) -> Tensor:
    sizes = form.layout.sizes
    if form.compression == "none":
        return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
    if form.compression == "bf16":
        raw = torch.from_numpy(np.frombuffer(data, "<i2").astype(np.int16))
        return raw.view(torch.bfloat16).float()
    if form.compression == "int8":
        scales = np.frombuffer(data, "<f4", count=len(sizes)).astype(np.float32)
        levels = np.frombuffer(data, np.int8, offset=4 * len(sizes)).astype(np.float32)
        return torch.from_numpy(levels * np.repeat(scales, sizes))
    positions, values = np.frombuffer(data, "<i4", count=len(data) // 8), data[len(data) // 2 :]
    _check_positions(positions, form)
    dense = np.zeros(form.layout.count, dtype=np.float32)
    dense[positions] = np.frombuffer(values, "<f4")
    return torch.from_numpy(dense)


def _select_positions(vector_n: Tensor, form: PayloadFormat) -> Positions:
    """Return the positions that topk sends, int64: group by group, ascending in each."""
    sizes, groups = np.array(form.layout.sizes, np.int64), np.array(form.layout.groups, np.int64)
    starts, parts = np.cumsum(sizes) - sizes, torch.split(vector_n.abs(), sizes.tolist())
    selected = [np.empty(0, np.int64)]
    for group, count in enumerate(count_topk(form.layout.group_sizes, form.share)):
        if not count:
            continue
        tensors = np.flatnonzero(groups == group)
        entries = select_top(torch.cat([parts[tensor] for tensor in tensors]), count).numpy()
        ends = np.cumsum(sizes[tensors])
        shifts = starts[tensors] - (ends - sizes[tensors])
        selected.append(entries + shifts[np.searchsorted(ends, entries, side="right")])
    return np.concatenate(selected)


def _check_positions(positions: Positions, form: PayloadFormat) -> None:
    """Raise BadPayload unless each is in the vector, is sent once, and each group has its share."""
    if not positions.size:
        return
    layout = form.layout
    if int(positions.min()) < 0 or int(positions.max()) >= layout.count:
        raise BadPayload(f"a position is outside 0..{layout.count - 1}")
    ordered = np.sort(positions)
    if bool((ordered[1:] == ordered[:-1]).any()):
        raise BadPayload("a position is sent twice")
    tensors = np.searchsorted(np.cumsum(layout.sizes), positions, side="right")
    counts = np.bincount(np.array(layout.groups)[tensors], minlength=len(GROUPS)).tolist()
    expected_counts = count_topk(layout.group_sizes, form.share)
    for name, count, expected in zip(GROUPS, counts, expected_counts, strict=True):
        if count > expected:
            raise BadPayload(f"{count:,} numbers of the {name} instead of {expected:,}")


def _encode_int8(vector_n: Tensor, sizes: tuple[int, ...], key: str) -> bytes:
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


def _compute_cuts(sizes: tuple[int, ...]) -> list[int]:
    return np.cumsum(sizes)[:-1].tolist() if len(sizes) else []


def _derive_seed(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:16]
