"""Read and check safetensors headers, without libraries."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jobs.store.strict_json import load_strictly

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""
MAX_COMMAS = 5_000_000
"""The limit per header, about 700,000 tensors. Small values grow thirtyfold when parsed."""
MAX_DIMENSIONS = 64
DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class TensorSpan(NamedTuple):
    """The type and shape of a tensor, and the range of its bytes, from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def is_empty(self) -> bool:
        """Return whether the tensor has no element, as ZeRO-3 saves weights not gathered."""
        return 0 in self.shape


class BadTensors(ValueError):
    """The file is not a safetensors file, or its header is wrong."""


def read_header(source: Path | BinaryIO, *, size: int | None = None) -> dict[str, TensorSpan]:
    """Return name -> span, or raise BadTensors. A stream that cannot seek needs its `size`."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return read_header(file)
    if size is None:
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
    length = _parse_header_length(_read_exactly(source, 8), size)
    spans = _parse_spans(_parse_header(_read_exactly(source, length)))
    _check_cover(spans, size - 8 - length)
    return spans


def read_data_start(path: Path) -> int:
    """Return the offset of the first tensor, in a file with a checked header."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _parse_header_length(prefix: bytes, size: int) -> int:
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise BadTensors(f"a header of {length} bytes exceeds the limit of {MAX_HEADER_BYTES}")
    if length > size - 8:
        raise BadTensors(f"a header of {length} bytes does not fit a file of {size} bytes")
    return length


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise BadTensors(f"the file ends after {len(data)} of {count} bytes of its header")
    return data


def _parse_header(header: bytes) -> dict[str, object]:
    if header.count(b",") > MAX_COMMAS or header.count(b"[") > MAX_COMMAS:
        raise BadTensors(f"a header of {len(header)} bytes holds more values than any model")
    try:
        value = load_strictly(header)
    except ValueError as error:
        raise BadTensors(f"the header is not JSON: {str(error)[:200]!a}") from error
    if not isinstance(value, dict):
        raise BadTensors("the header is not a JSON object")
    return value


def _parse_spans(header: dict[str, object]) -> dict[str, TensorSpan]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise BadTensors("__metadata__ is not a map of strings")
    return {name: _parse_span(name, entry) for name, entry in header.items()}


def _parse_span(name: str, entry: object) -> TensorSpan:
    label = ascii(name[:100])
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadTensors(f"{label} has entries other than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BadTensors(f"{label} has the unknown type {ascii(dtype)[:40]}")
    if not _is_count_list(shape, at_most=MAX_DIMENSIONS):
        raise BadTensors(f"{label} has an invalid shape")
    if not _is_count_list(offsets, at_most=2) or len(offsets) != 2:
        raise BadTensors(f"{label} has invalid offsets")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if end < begin or bits != (end - begin) * 8:
        needed = -(-bits // 8)
        raise BadTensors(f"{label} has {end - begin} bytes, but its type and shape need {needed}")
    return TensorSpan(dtype, tuple(shape), begin, end)


def _is_count_list(values: object, *, at_most: int) -> bool:
    # `type is int`, because True is an int too.
    return (
        isinstance(values, list)
        and len(values) <= at_most
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _check_cover(spans: dict[str, TensorSpan], size: int) -> None:
    position = 0
    for name, span in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)):
        if span.begin != position:
            problem = "overlaps another" if span.begin < position else "leaves a gap before it"
            raise BadTensors(f"{name[:100]!a} {problem}, at byte {span.begin}")
        position = span.end
    if position != size:
        raise BadTensors(f"the header describes {position} bytes, but the file has {size}")
