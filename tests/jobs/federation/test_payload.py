"""Payloads: sizes by formula, errors within their bounds, invalid bytes refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.federation.averaging.payload import BadPayload, compute_payload_size, decode, encode

COMPRESSIONS = ("none", "bf16", "int8", "topk")
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def _vector(sizes: list[int], seed: int = 0) -> torch.Tensor:
    return torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(sizes=SIZES, share=st.floats(0.01, 1.0))
def test_a_payload_is_as_long_as_its_formula_says(compression, sizes, share):
    encoded = encode(_vector(sizes), compression, sizes, share, key="k")
    assert len(encoded) == compute_payload_size(compression, sizes, share)
    assert decode(encoded, compression, sizes, share).shape == (sum(sizes),)


@given(sizes=SIZES)
def test_an_uncompressed_vector_is_exact(sizes):
    vector = _vector(sizes)
    assert torch.equal(decode(encode(vector, "none", sizes, 1, key=""), "none", sizes, 1), vector)
    rounded = vector.to(torch.bfloat16).float()
    assert torch.equal(decode(encode(vector, "bf16", sizes, 1, key=""), "bf16", sizes, 1), rounded)


@given(sizes=SIZES, share=st.floats(0.05, 1.0))
def test_topk_sends_the_largest_entries_only(sizes, share):
    vector = _vector(sizes)
    decoded = decode(encode(vector, "topk", sizes, share, key=""), "topk", sizes, share)
    is_sent = decoded != 0
    assert torch.equal(decoded[is_sent], vector[is_sent])
    if bool(is_sent.any()) and not bool(is_sent.all()):
        assert vector[is_sent].abs().min() >= vector[~is_sent].abs().max()


@given(sizes=SIZES, seed=st.integers(0, 5))
def test_the_error_of_int8_is_less_than_a_level_of_its_tensor(sizes, seed):
    vector = _vector(sizes, seed)
    decoded = decode(encode(vector, "int8", sizes, 1, key=str(seed)), "int8", sizes, 1)
    for part, decoded_part in zip(vector.split(sizes), decoded.split(sizes), strict=True):
        level = part.abs().max() / 127
        assert (part - decoded_part).abs().max() <= level * (1 + 1e-5)


def test_the_mean_of_int8_over_many_clients_is_unbiased():
    sizes, vector = [200], _vector([200])
    decoded = [
        decode(encode(vector, "int8", sizes, 1, key=str(client)), "int8", sizes, 1)
        for client in range(400)
    ]
    level = float(vector.abs().max() / 127)
    assert (torch.stack(decoded).mean(0) - vector).abs().max() < 0.15 * level


def test_int8_of_zeros_is_zero():
    assert not decode(encode(torch.zeros(3), "int8", [3], 1, key=""), "int8", [3], 1).any()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1]])
def test_bytes_of_another_length_are_refused_with_both_lengths(compression, change):
    encoded = encode(torch.ones(5), compression, [5], 0.5, key="")
    with pytest.raises(BadPayload, match="instead of"):
        decode(change(encoded), compression, [5], 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("compression", ["none", "topk", "int8"])
def test_a_value_that_is_not_finite_is_refused(compression, value):
    encoded = bytearray(encode(torch.ones(4), compression, [4], 1.0, key=""))
    offset = {"none": 0, "topk": 16, "int8": 0}[compression]
    encoded[offset : offset + 4] = np.float32(value).tobytes()
    with pytest.raises(BadPayload, match="not a finite number"):
        decode(bytes(encoded), compression, [4], 1.0)


@pytest.mark.parametrize("position", [-1, 4, 2**31 - 1])
def test_a_position_outside_the_vector_is_refused(position):
    encoded = bytearray(encode(torch.ones(4), "topk", [4], 0.5, key=""))
    encoded[:4] = np.int32(position).tobytes()
    with pytest.raises(BadPayload, match=r"outside 0\.\.3"):
        decode(bytes(encoded), "topk", [4], 0.5)
