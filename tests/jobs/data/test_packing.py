"""Packing: everything once, nothing too long, and a row never learns from its neighbour."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.train.data.packing import join_samples, pack_samples
from jobs.train.data.tokenization import IGNORE_INDEX, Sample

LENGTHS = st.lists(st.integers(1, 16), max_size=60)


def samples(lengths: list[int]) -> list[Sample]:
    """Each sample's tokens say which sample it is, and where in it they stand."""
    return [
        Sample(
            tuple(1000 * number + at for at in range(length)),
            (IGNORE_INDEX, *(1000 * number + at for at in range(1, length))),
        )
        for number, length in enumerate(lengths)
    ]


@given(lengths=LENGTHS, open_at_once=st.integers(1, 5))
def test_every_sample_leaves_once_and_whole(lengths: list[int], open_at_once: int) -> None:
    found = []
    for one in pack_samples(samples(lengths), max_length=16, max_open=open_at_once):
        assert 0 < len(one) <= 16
        tokens = zip(one.segment_ids, one.input_ids, one.labels, one.position_ids, strict=True)
        for _, segment in groupby(tokens, key=lambda token: token[0]):
            _, ids, labels, positions = zip(*segment, strict=True)
            assert positions == tuple(range(len(ids)))
            found.append(Sample(ids, labels))
        assert one.segment_ids[-1] == one.rows and sorted(one.segment_ids) == list(one.segment_ids)
    assert sorted(found, key=lambda sample: sample.input_ids) == samples(lengths)


@given(lengths=LENGTHS)
def test_no_two_neighbours_left_open_would_have_fitted_together(lengths: list[int]) -> None:
    made = list(pack_samples(samples(lengths), max_length=16, max_open=1000))
    halves = [one for one in made if len(one) <= 8]
    assert len(halves) <= 1


def test_the_order_of_the_rows_is_roughly_kept() -> None:
    made = list(pack_samples(samples([9] * 10), max_length=16, max_open=2))
    assert [one.input_ids[0] // 1000 for one in made] == list(range(10))


def test_a_full_sequence_leaves_at_once() -> None:
    made = pack_samples(iter(samples([9, 16, 9])), max_length=16)
    assert next(made).input_ids[0] == 1000


@pytest.mark.parametrize("length", [0, 17])
def test_a_sample_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"a sample of {length} tokens does not fit 16"):
        list(pack_samples([Sample((1,) * length, (1,) * length)], max_length=16))


def test_one_sample_alone_is_one_segment() -> None:
    one = join_samples([Sample((5, 6), (IGNORE_INDEX, 6))])
    assert (one.segment_ids, one.position_ids, one.rows) == ((1, 1), (0, 1), 1)
