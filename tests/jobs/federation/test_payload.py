"""What travels: sizes by formula, exact ways exact, lossy ways within their bound, lies refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.federation.averaging.payload import BadPayload, compute_payload_size, decode, encode

WAYS = ("none", "bf16", "int8", "topk")
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def _vector(sizes: list[int], seed: int = 0) -> torch.Tensor:
    return torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("how", WAYS)
@given(sizes=SIZES, share=st.floats(0.01, 1.0))
def test_a_payload_is_as_long_as_its_formula_says(how, sizes, share):
    sent = encode(_vector(sizes), how, sizes, share, key="k")
    assert len(sent) == compute_payload_size(how, sizes, share)
    assert decode(sent, how, sizes, share).shape == (sum(sizes),)


@given(sizes=SIZES)
def test_what_is_not_compressed_comes_as_it_went(sizes):
    vector = _vector(sizes)
    assert torch.equal(decode(encode(vector, "none", sizes, 1, key=""), "none", sizes, 1), vector)
    rounded = vector.to(torch.bfloat16).float()
    assert torch.equal(decode(encode(vector, "bf16", sizes, 1, key=""), "bf16", sizes, 1), rounded)


@given(sizes=SIZES, share=st.floats(0.05, 1.0))
def test_topk_sends_the_largest_and_nothing_else(sizes, share):
    vector = _vector(sizes)
    found = decode(encode(vector, "topk", sizes, share, key=""), "topk", sizes, share)
    kept = found != 0
    assert torch.equal(found[kept], vector[kept])
    if bool(kept.any()) and not bool(kept.all()):
        assert vector[kept].abs().min() >= vector[~kept].abs().max()


@given(sizes=SIZES, seed=st.integers(0, 5))
def test_int8_is_off_by_less_than_a_level_of_its_tensor(sizes, seed):
    vector = _vector(sizes, seed)
    found = decode(encode(vector, "int8", sizes, 1, key=str(seed)), "int8", sizes, 1)
    for part, told in zip(vector.split(sizes), found.split(sizes), strict=True):
        level = part.abs().max() / 127
        assert (part - told).abs().max() <= level * (1 + 1e-5)


def test_int8_s_mean_over_many_clients_is_the_value():
    sizes, vector = [200], _vector([200])
    told = [
        decode(encode(vector, "int8", sizes, 1, key=str(client)), "int8", sizes, 1)
        for client in range(400)
    ]
    level = float(vector.abs().max() / 127)
    assert (torch.stack(told).mean(0) - vector).abs().max() < 0.15 * level


def test_int8_of_nothing_is_nothing():
    assert not decode(encode(torch.zeros(3), "int8", [3], 1, key=""), "int8", [3], 1).any()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("change", [lambda sent: sent + b"\0", lambda sent: sent[:-1]])
def test_bytes_of_another_length_are_refused_with_both_lengths(how, change):
    sent = encode(torch.ones(5), how, [5], 0.5, key="")
    with pytest.raises(BadPayload, match="instead of"):
        decode(change(sent), how, [5], 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("how", ["none", "topk", "int8"])
def test_a_value_that_is_no_number_is_refused(how, value):
    sent = bytearray(encode(torch.ones(4), how, [4], 1.0, key=""))
    at = {"none": 0, "topk": 16, "int8": 0}[how]
    sent[at : at + 4] = np.float32(value).tobytes()
    with pytest.raises(BadPayload, match="no number"):
        decode(bytes(sent), how, [4], 1.0)


@pytest.mark.parametrize("place", [-1, 4, 2**31 - 1])
def test_a_position_outside_the_vector_is_refused(place):
    sent = bytearray(encode(torch.ones(4), "topk", [4], 0.5, key=""))
    sent[:4] = np.int32(place).tobytes()
    with pytest.raises(BadPayload, match=r"outside 0\.\.3"):
        decode(bytes(sent), "topk", [4], 0.5)
