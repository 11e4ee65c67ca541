"""NaN and infinity are detected in every type, and finite values pass."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from jobs.store.adapters.nan_check import find_non_finite
from jobs.store.adapters.safetensors_header import read_header
from tests.jobs.store.builders import encode_safetensors

INF, NAN = float("inf"), float("nan")
BAD = {
    "F64": [struct.pack("<d", value) for value in (INF, -INF, NAN)],
    "F32": [struct.pack("<f", value) for value in (INF, -INF, NAN)] + [b"\x01\x00\x80\x7f"],
    "F16": [struct.pack("<e", value) for value in (INF, -INF, NAN)],
    "BF16": [b"\x80\x7f", b"\x80\xff", b"\xc0\x7f"],
    "F8_E5M2": [b"\x7c", b"\xfc", b"\x7f"],
}
GOOD = {
    "F64": [struct.pack("<d", value) for value in (0.0, -1.5, 1.7e308, 5e-324)],
    "F32": [struct.pack("<f", value) for value in (0.0, -1.5, 3.4e38, 1e-45)],
    "F16": [struct.pack("<e", value) for value in (0.0, -1.5, 65504.0, 6e-8)],
    "BF16": [b"\x7f\x7f", b"\x00\x00", b"\x80\x3f", b"\x7f\x7e"],
    "F8_E5M2": [b"\x7b", b"\x00", b"\x3c"],
    "I64": [b"\xff" * 8],
    "U8": [b"\xff", b"\x7f"],
}


def write_floats(path: Path, dtype: str, values: list[bytes]) -> Path:
    data = b"".join(values)
    entry = {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, len(data)]}
    path.write_bytes(encode_safetensors({"x": entry}, data))
    return path


@pytest.mark.parametrize("dtype", BAD)
def test_a_non_finite_value_is_detected_at_any_position(dtype: str, tmp_path: Path):
    for number, bad in enumerate(BAD[dtype]):
        for position in (0, 2, 4):
            values = [GOOD[dtype][0]] * 4
            values.insert(position, bad)
            path = write_floats(tmp_path / f"{number}-{position}", dtype, values)
            assert find_non_finite(path, read_header(path)) == "x"


@pytest.mark.parametrize("dtype", GOOD)
def test_finite_values_pass(dtype: str, tmp_path: Path):
    path = write_floats(tmp_path / "file", dtype, GOOD[dtype] * 1000)
    assert find_non_finite(path, read_header(path)) is None
