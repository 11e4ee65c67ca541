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


@given(lengths=LENGTHS, max_open=st.integers(1, 5))
def test_every_sample_is_in_one_sequence_undivided(lengths: list[int], max_open: int) -> None:
    unpacked = []
    for sequence in pack_samples(samples(lengths), max_length=16, max_open=max_open):
        assert 0 < len(sequence) <= 16
        tokens = zip(
            sequence.segment_ids,
            sequence.input_ids,
            sequence.labels,
            sequence.position_ids,
            strict=True,
        )
        for _, segment in groupby(tokens, key=lambda token: token[0]):
            _, ids, labels, positions = zip(*segment, strict=True)
            assert positions == tuple(range(len(ids)))
            unpacked.append(Sample(ids, labels))
        assert sequence.segment_ids[-1] == sequence.rows and sorted(sequence.segment_ids) == list(
            sequence.segment_ids
        )
    assert sorted(unpacked, key=lambda sample: sample.input_ids) == samples(lengths)


@given(lengths=LENGTHS)
def test_no_two_neighbours_in_open_sequences_would_have_fitted_together(lengths: list[int]) -> None:
    sequences = list(pack_samples(samples(lengths), max_length=16, max_open=1000))
    halves = [sequence for sequence in sequences if len(sequence) <= 8]
    assert len(halves) <= 1


def test_the_order_of_the_rows_is_roughly_preserved() -> None:
    sequences = list(pack_samples(samples([9] * 10), max_length=16, max_open=2))
    assert [sequence.input_ids[0] // 1000 for sequence in sequences] == list(range(10))


def test_a_full_sequence_is_yielded_at_once() -> None:
    sequences = pack_samples(iter(samples([9, 16, 9])), max_length=16)
    assert next(sequences).input_ids[0] == 1000


@pytest.mark.parametrize("length", [0, 17])
def test_a_sample_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"a sample of {length} tokens exceeds 16"):
        list(pack_samples([Sample((1,) * length, (1,) * length)], max_length=16))


def test_a_single_sample_is_one_segment() -> None:
    sequence = join_samples([Sample((5, 6), (IGNORE_INDEX, 6))])
    assert (sequence.segment_ids, sequence.position_ids, sequence.rows) == ((1, 1), (0, 1), 1)
