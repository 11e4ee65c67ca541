"""Safetensors headers: valid ones are read, wrong ones are reported."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.safetensors_header import BadTensors, TensorSpan, read_header
from tests.jobs.store.builders import catch, encode_safetensors


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HONEST = {
    "a": entry("F32", (2, 3), (0, 24)),
    "b": entry("BF16", (), (24, 26)),
    "c": entry("I8", (0, 5), (26, 26)),
    "__metadata__": {"format": "pt"},
}


@pytest.mark.parametrize("way", ["path", "stream", "stream that can't seek"])
def test_a_valid_header_is_read(way: str, tmp_path: Path):
    data = encode_safetensors(HONEST, bytes(26))
    (tmp_path / "file").write_bytes(data)
    if way == "path":
        spans = read_header(tmp_path / "file")
    elif way == "stream":
        spans = read_header(io.BytesIO(data))
    else:
        stream = io.BytesIO(data)
        stream.seek = None  # type: ignore[assignment, method-assign]
        spans = read_header(stream, size=len(data))
    assert spans == {
        "a": TensorSpan("F32", (2, 3), 0, 24),
        "b": TensorSpan("BF16", (), 24, 26),
        "c": TensorSpan("I8", (0, 5), 26, 26),
    }
    assert [name for name, span in spans.items() if span.is_empty] == ["c"]


def test_the_safetensors_library_agrees(tmp_path: Path):
    numpy = pytest.importorskip("numpy")
    saving = pytest.importorskip("safetensors.numpy")
    arrays = {
        "a": numpy.zeros((3, 4), dtype="float32"),
        "b": numpy.zeros(5, dtype="float16"),
        "c": numpy.zeros((), dtype="int64"),
        "e": numpy.zeros((0, 2), dtype="float64"),
    }
    saving.save_file(arrays, tmp_path / "file", metadata={"format": "pt"})
    spans = read_header(tmp_path / "file")
    assert {name: span.shape for name, span in spans.items()} == {
        name: tensor.shape for name, tensor in arrays.items()
    }


DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
TWICE = b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)
HUGE = 2**62
LYING = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "header longer than the file": (1000).to_bytes(8, "little") + b"{}",
    "header exceeds the limit": (100_000_001).to_bytes(8, "little") + b"{}",
    "header of 2**64-1 bytes": b"\xff" * 8,
    "header of no bytes": bytes(8),
    "not JSON": encode_safetensors(b"{nonsense"),
    "not UTF-8": encode_safetensors(b'{"\xff":1}'),
    "a pickle": b"\x80\x04\x95" + bytes(20),
    "a list": encode_safetensors([]),
    "nested too deep": encode_safetensors(DEEP),
    "NaN": encode_safetensors(b'{"a":NaN}'),
    "a number of 5000 digits": encode_safetensors(b'{"a":' + b"9" * 5000 + b"}"),
    "a name twice": encode_safetensors(TWICE, bytes(8)),
    "metadata of numbers": encode_safetensors({"__metadata__": {"a": 1}}),
    "entry is a text": encode_safetensors({"a": "F32"}),
    "entry lacks offsets": encode_safetensors({"a": {"dtype": "F32", "shape": []}}),
    "entry has more": encode_safetensors({"a": {**entry(), "code": "x"}}, bytes(8)),
    "unknown type": encode_safetensors({"a": entry("F31")}, bytes(8)),
    "type is a list": encode_safetensors({"a": entry(["F32"])}, bytes(8)),
    "negative dimension": encode_safetensors({"a": entry("F32", (-2, -1))}, bytes(8)),
    "dimension is a float": encode_safetensors({"a": entry("F32", (2.0,))}, bytes(8)),
    "dimension is true": encode_safetensors({"a": entry("F32", (True, 2))}, bytes(8)),
    "dimensions without end": encode_safetensors({"a": entry("F32", (1,) * 65, (0, 4))}, bytes(4)),
    "shape that overflows 64 bits": encode_safetensors({"a": entry("F32", (HUGE, HUGE))}, bytes(8)),
    "three offsets": encode_safetensors({"a": entry("F32", (2,), (0, 8, 8))}, bytes(8)),
    "offsets backwards": encode_safetensors({"a": entry("F32", (2,), (8, 0))}, bytes(8)),
    "negative offset": encode_safetensors({"a": entry("F32", (2,), (-8, 0))}, bytes(8)),
    "offsets beyond the file": encode_safetensors({"a": entry()}, bytes(4)),
    "shape smaller than its bytes": encode_safetensors({"a": entry("F32", (1,))}, bytes(8)),
    "bytes that nobody names": encode_safetensors({"a": entry()}, bytes(9)),
    "a gap": encode_safetensors({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "a start after zero": encode_safetensors({"a": entry(offsets=(4, 12))}, bytes(12)),
    "an overlap": encode_safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "two over one place": encode_safetensors({"a": entry(), "b": entry()}, bytes(8)),
    "half a byte": encode_safetensors({"a": entry("F4", (3,), (0, 2))}, bytes(2)),
}


def test_a_wrong_header_is_reported_in_a_printable_line():
    for case, data in LYING.items():
        error = catch(BadTensors, lambda data=data: read_header(io.BytesIO(data)))
        assert error is not None, case
        assert str(error).isprintable() and len(str(error)) < 400, case


@pytest.mark.parametrize(
    ("length", "size", "says"),
    [
        (100_000_001, 2**40, "exceeds the limit"),
        (100_000_000, 2**40, "ends after"),
        (1000, 1007, "does not fit"),
        (1000, 1008, "ends after"),
    ],
)
def test_a_header_is_measured_before_it_is_read(length: int, size: int, says: str):
    with pytest.raises(BadTensors, match=says):
        read_header(io.BytesIO(length.to_bytes(8, "little") + b"{}"), size=size)


def test_a_stream_that_ends_early_is_an_error():
    data = encode_safetensors(HONEST, bytes(26))
    with pytest.raises(BadTensors, match="ends after"):
        read_header(io.BytesIO(data[:20]), size=len(data))


def test_a_hostile_tensor_name_is_printed_escaped():
    with pytest.raises(BadTensors) as caught:
        read_header(io.BytesIO(encode_safetensors({"\x1b[2J": entry("F31")}, bytes(8))))
    assert "\\x1b" in str(caught.value)


@pytest.mark.parametrize("piece", [b"[],", b"1,", b'"":0,'], ids=["lists", "numbers", "names"])
def test_a_bomb_of_a_header_is_refused_before_it_grows(piece: bytes, tmp_path: Path):
    header = b'{"a":[' + piece * 6_000_000 + b"0]}"
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header)
    tracemalloc.start()
    try:
        with pytest.raises(BadTensors, match="more values than any model"):
            read_header(tmp_path / "file")
        assert tracemalloc.get_traced_memory()[1] < 3 * len(header)
    finally:
        tracemalloc.stop()
