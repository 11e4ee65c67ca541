"""Several samples in one sequence, without gaps. Knows lengths and order, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jobs.data.tokens import Sample

OPEN = 64
"""Sequences being filled at once: more fill better, fewer keep the order of the rows closer."""


@dataclass(frozen=True)
class Sequence:
    """What the model is fed as one row of a batch, without padding."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    position_ids: tuple[int, ...]
    segment_ids: tuple[int, ...]
    rows: int

    def __len__(self) -> int:
        return len(self.input_ids)


def pack(
    samples: Iterable[Sample], *, max_length: int, open_at_once: int = OPEN
) -> Iterator[Sequence]:
    """Each sample goes into the first open sequence with room. The oldest leaves when all are open.

    Deterministic; every sample leaves exactly once, and whole.
    """
    bins: list[_Bin] = []
    for sample in samples:
        size = len(sample.input_ids)
        if not 0 < size <= max_length:
            raise ValueError(f"a sample of {size} tokens does not fit {max_length}: cut it first")
        place = next((bin for bin in bins if bin.used + size <= max_length), None)
        if place is None:
            if len(bins) == open_at_once:
                yield join(bins.pop(0).samples)
            bins.append(place := _Bin())
        place.samples.append(sample)
        place.used += size
        if place.used == max_length:
            bins.remove(place)
            yield join(place.samples)
    for bin in bins:
        yield join(bin.samples)


def join(samples: Iterable[Sample]) -> Sequence:
    """Samples one after the other; positions restart with each, segments count them from 1."""
    samples = tuple(samples)
    return Sequence(
        input_ids=tuple(token for sample in samples for token in sample.input_ids),
        labels=tuple(label for sample in samples for label in sample.labels),
        position_ids=tuple(at for sample in samples for at in range(len(sample.input_ids))),
        segment_ids=tuple(
            number for number, sample in enumerate(samples, start=1) for _ in sample.input_ids
        ),
        rows=len(samples),
    )


@dataclass(eq=False)
class _Bin:
    samples: list[Sample] = field(default_factory=list)
    used: int = 0
