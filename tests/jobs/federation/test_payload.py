"""Payloads: sizes by formula, errors within their bounds, invalid bytes refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.federation.averaging.flat_layout import VectorLayout
from jobs.federation.averaging.payload import BadPayload, PayloadFormat, decode, encode

COMPRESSIONS = ("none", "bf16", "int8", "topk")
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def make_format(
    sizes: Sequence[int], compression: str, share: float = 1.0, head: Collection[int] = ()
) -> PayloadFormat:
    """Return the format of tensors of these sizes; `head`: the numbers of those of the head."""
    names = tuple(f"tensor {index}" for index in range(len(sizes)))
    shapes = tuple((size,) for size in sizes)
    layout = VectorLayout(names, shapes, frozenset(names[index] for index in head))
    return PayloadFormat(layout, compression, share)


def _vector(sizes: list[int], seed: int = 0) -> torch.Tensor:
    return torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(sizes=SIZES, share=st.floats(0.01, 1.0), head=st.sets(st.integers(0, 5)))
def test_a_payload_is_as_long_as_its_formula_says(compression, sizes, share, head):
    form = make_format(sizes, compression, share, [one for one in head if one < len(sizes)])
    encoded = encode(_vector(sizes), form, key="k")
    assert len(encoded) == form.size
    assert decode(encoded, form).shape == (sum(sizes),)


@given(sizes=SIZES)
def test_an_uncompressed_vector_is_exact(sizes):
    vector = _vector(sizes)
    plain, half = make_format(sizes, "none"), make_format(sizes, "bf16")
    assert torch.equal(decode(encode(vector, plain, key=""), plain), vector)
    rounded = vector.to(torch.bfloat16).float()
    assert torch.equal(decode(encode(vector, half, key=""), half), rounded)


@given(sizes=SIZES, share=st.floats(0.05, 1.0), head=st.sets(st.integers(0, 5)))
def test_topk_sends_the_largest_entries_of_each_group_only(sizes, share, head):
    vector, form = _vector(sizes), make_format(sizes, "topk", share, {0} & head)
    decoded = decode(encode(vector, form, key=""), form)
    in_head = torch.arange(sum(sizes)) < (sizes[0] if form.layout.head else 0)
    for is_member in (in_head, ~in_head):
        sent, given_group = decoded[is_member], vector[is_member]
        is_sent = sent != 0
        assert int(is_sent.sum()) == math.ceil(share * len(given_group))
        assert torch.equal(sent[is_sent], given_group[is_sent])
        if bool(is_sent.any()) and not bool(is_sent.all()):
            assert given_group[is_sent].abs().min() >= given_group[~is_sent].abs().max()


def test_a_head_with_larger_changes_takes_no_share_of_the_adapter():
    """A head between two tensors of the adapter, whose changes are a hundred times as large."""
    sizes = [30, 20, 10]
    vector = _vector(sizes)
    vector[30:50] *= 100
    form = make_format(sizes, "topk", 0.1, head=[1])
    decoded = decode(encode(vector, form, key=""), form)
    adapter = torch.cat([decoded[:30], decoded[50:]])
    assert (int((adapter != 0).sum()), int((decoded[30:50] != 0).sum())) == (4, 2)


@given(sizes=SIZES, seed=st.integers(0, 5))
def test_the_error_of_int8_is_less_than_a_level_of_its_tensor(sizes, seed):
    vector, form = _vector(sizes, seed), make_format(sizes, "int8")
    decoded = decode(encode(vector, form, key=str(seed)), form)
    for part, decoded_part in zip(vector.split(sizes), decoded.split(sizes), strict=True):
        level = part.abs().max() / 127
        assert (part - decoded_part).abs().max() <= level * (1 + 1e-5)


def test_the_mean_of_int8_over_many_clients_is_unbiased():
    vector, form = _vector([200]), make_format([200], "int8")
    decoded = [decode(encode(vector, form, key=str(client)), form) for client in range(400)]
    level = float(vector.abs().max() / 127)
    assert (torch.stack(decoded).mean(0) - vector).abs().max() < 0.15 * level


def test_int8_of_zeros_is_zero():
    form = make_format([3], "int8")
    assert not decode(encode(torch.zeros(3), form, key=""), form).any()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1]])
def test_bytes_of_another_length_are_refused_with_both_lengths(compression, change):
    form = make_format([5], compression, 0.5)
    encoded = encode(torch.ones(5), form, key="")
    with pytest.raises(BadPayload, match="instead of"):
        decode(change(encoded), form)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("compression", ["none", "topk", "int8"])
def test_a_value_that_is_not_finite_is_refused(compression, value):
    form = make_format([4], compression)
    encoded = bytearray(encode(torch.ones(4), form, key=""))
    offset = {"none": 0, "topk": 16, "int8": 0}[compression]
    encoded[offset : offset + 4] = np.float32(value).tobytes()
    with pytest.raises(BadPayload, match="not a finite number"):
        decode(bytes(encoded), form)


@pytest.mark.parametrize("position", [-1, 4, 2**31 - 1])
def test_a_position_outside_the_vector_is_refused(position):
    form = make_format([4], "topk", 0.5)
    encoded = bytearray(encode(torch.ones(4), form, key=""))
    encoded[:4] = np.int32(position).tobytes()
    with pytest.raises(BadPayload, match=r"outside 0\.\.3"):
        decode(bytes(encoded), form)


REFUSED = {
    "more of the adapter": ([0, 1, 5], "2 numbers of the adapter instead of 1"),
    "more of the head": ([4, 5, 6], "3 numbers of the head instead of 2"),
    "one twice": ([0, 4, 4], "a position is sent twice"),
}


@pytest.mark.parametrize(("positions", "reason"), REFUSED.values(), ids=REFUSED)
def test_positions_that_no_client_sends_are_refused(positions, reason):
    """Of an adapter of 4 and a head of 8 numbers a quarter is sent: 1 and 2."""
    form = make_format([4, 8], "topk", 0.25, head=[1])
    data = np.array(positions, "<i4").tobytes() + np.ones(3, "<f4").tobytes()
    with pytest.raises(BadPayload, match=reason):
        decode(data, form)
