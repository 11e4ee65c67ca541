"""Several samples in one sequence, without gaps. Knows lengths and order, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jobs.train.data.tokenization import Sample

MAX_OPEN_SEQUENCES = 64
"""Sequences being filled at once: more fill better, fewer keep the order of the rows closer."""


@dataclass(frozen=True)
class TokenSequence:
    """What the model is fed as one row of a batch, without padding."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    position_ids: tuple[int, ...]
    segment_ids: tuple[int, ...]
    rows: int

    def __len__(self) -> int:
        return len(self.input_ids)


def pack_samples(
    samples: Iterable[Sample], *, max_length: int, max_open: int = MAX_OPEN_SEQUENCES
) -> Iterator[TokenSequence]:
    """Each sample goes into the first open sequence with room. The oldest leaves when all are open.

    Deterministic; every sample leaves exactly once, and whole.
    """
    open_bins: list[_PackingBin] = []
    for sample in samples:
        size = len(sample.input_ids)
        if not 0 < size <= max_length:
            raise ValueError(f"a sample of {size} tokens does not fit {max_length}: cut it first")
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
    """Samples one after the other; positions restart with each, segments count them from 1."""
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
    )


@dataclass(eq=False)
class _PackingBin:
    samples: list[Sample] = field(default_factory=list)
    used: int = 0
