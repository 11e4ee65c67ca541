"""Pack several samples into one sequence without gaps. No tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jobs.train.data.tokenization import Sample

MAX_OPEN_SEQUENCES = 64
"""Sequences that are filled at once: more of them fill better, fewer keep the order of rows."""


@dataclass(frozen=True)
class TokenSequence:
    """A row of a batch, without padding."""

    input_ids: tuple[int, ...]
    labels: tuple[float, ...]
    position_ids: tuple[int, ...]
    segment_ids: tuple[int, ...]
    rows: int
    """0 for filler, of which nothing is learnt."""
    tokens: int
    """Number of tokens that the model reads and writes."""
    type_ids: tuple[int, ...] = ()
    """0 for the first of two texts, 1 for the second; empty where there is no pair."""

    def __len__(self) -> int:
        return len(self.input_ids)


def pack_samples(
    samples: Iterable[Sample], *, max_length: int, max_open: int = MAX_OPEN_SEQUENCES
) -> Iterator[TokenSequence]:
    """Put each sample into the first open sequence with room; the oldest one is closed if none has.

    The result is deterministic. Every sample is in exactly one sequence, undivided.
    """
    open_bins: list[_PackingBin] = []
    for sample in samples:
        size = len(sample.input_ids)
        if not 0 < size <= max_length:
            raise ValueError(f"a sample of {size} tokens exceeds {max_length}: truncate it first")
        target = next(
            (candidate for candidate in open_bins if candidate.used + size <= max_length), None
        )
        if target is None:
            if len(open_bins) == max_open:
                yield join_samples(open_bins.pop(0).samples)
            open_bins.append(target := _PackingBin())
        target.samples.append(sample)
        target.used += size
        if target.used == max_length:
            open_bins.remove(target)
            yield join_samples(target.samples)
    for candidate in open_bins:
        yield join_samples(candidate.samples)


def join_samples(samples: Iterable[Sample]) -> TokenSequence:
    """Concatenate samples; positions restart with each, segments count them from 1."""
    samples = tuple(samples)
    return TokenSequence(
        input_ids=tuple(token for sample in samples for token in sample.input_ids),
        labels=tuple(label for sample in samples for label in sample.labels),
        position_ids=tuple(
            position for sample in samples for position in range(len(sample.input_ids))
        ),
        segment_ids=tuple(
            number for number, sample in enumerate(samples, start=1) for _ in sample.input_ids
        ),
        rows=len(samples),
        tokens=sum(sample.tokens for sample in samples),
        type_ids=_list_types(samples),
    )


def _list_types(samples: tuple[Sample, ...]) -> tuple[int, ...]:
    if not any(sample.second for sample in samples):
        return ()
    return tuple(
        int(0 < sample.second <= position)
        for sample in samples
        for position in range(len(sample.input_ids))
    )


@dataclass(eq=False)
class _PackingBin:
    samples: list[Sample] = field(default_factory=list)
    used: int = 0
