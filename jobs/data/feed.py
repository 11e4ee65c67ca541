"""The global batches of a run, dealt to its workers. The same batches whatever their number.

Every worker streams every row and keeps its slice: so each knows the targets of the whole batch
without asking, and the count of workers changes nothing but who computes what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

from jobs.data.collate import FILLER, Batch, Collator, count_targets
from jobs.data.formats import read_example
from jobs.data.packing import Sequence, join, pack
from jobs.data.source import Source
from jobs.data.tokens import Encoder, Sample
from jobs.errors import Fault, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MULTIPLE = 8
"""Lengths are rounded up to this, as tensor cores like them."""


@dataclass(frozen=True)
class Step:
    """What this rank does in one optimiser step."""

    micros: tuple[Batch, ...]
    """The same number on every rank."""
    targets: int
    """Labels that count in the whole global batch, over all ranks."""
    tokens: int
    """Of the whole global batch, without padding."""
    rows: int
    """Sequences in the whole global batch, without filler."""


@dataclass(frozen=True)
class Count:
    """What one epoch holds."""

    sequences: int
    rows: int
    """Read, those dropped included."""
    tokens: int
    targets: int
    cut: int
    """Rows that were longer than max_length."""
    dropped: int
    """Rows without a target, most often because it was cut off."""
    fill: float
    """Share of max_length that is tokens."""


class Feed:
    """One side of the data, as steps."""

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task: str,
        max_length: int,
        packing: bool,
        batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.source, self.task, self.max_length = source, task, max_length
        self.packed = packing and task == "causal-lm"
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rank, self.world_size = rank, world_size
        self.shuffle_seed = seed if shuffle else None
        self.encode = Encoder(tokenizer, max_length=max_length, labels=source.labels)
        self.collate = Collator(
            pad_id=_pad_id(tokenizer),
            packed=self.packed,
            classifies=task == "sequence-classification",
            token_types="token_type_ids" in tokenizer.model_input_names,
        )

    def count(self) -> Count:
        """What epoch 0 holds, by going through it once."""
        tally = _Tally()
        sequences = tokens = targets = 0
        for one in self._epoch(0, self.shuffle_seed, tally):
            sequences += 1
            tokens += len(one)
            targets += count_targets(one)
        fill = tokens / (sequences * self.max_length) if sequences else 0.0
        return Count(sequences, tally.rows, tokens, targets, tally.cut, tally.dropped, fill)

    def steps(
        self, *, start: int = 0, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[Step]:
        """Global batches from `start` to the end of the run: its steps, its epochs, or neither.

        `steps` counts from the beginning of the run and not from `start`: a resumed run repeats it.
        """
        sequences = self._skipping(start * self.batch_size, epochs)
        left = None if steps is None else max(0, steps - start)
        yield from islice(self._dealt(sequences), left)

    def epoch(self) -> Iterator[Step]:
        """One pass in the order of the files, for evaluation; the last step is filled up."""
        return self._dealt(self._epoch(0, None, _Tally()))

    def _skipping(self, skipped: int, epochs: int | None) -> Iterator[Sequence]:
        """The epochs one after the other, without the first `skipped` sequences."""
        size: int | None = None
        for epoch in count() if epochs is None else range(epochs):
            # Unpacked, every epoch is as long as the first that was gone through.
            if size is not None and not self.packed and skipped >= size:
                skipped -= size
                continue
            size = 0
            for one in self._epoch(epoch, self.shuffle_seed, _Tally()):
                size += 1
                if skipped:
                    skipped -= 1
                else:
                    yield one
            if not size:
                raise InputError([self.nothing()])

    def _epoch(self, epoch: int, shuffle_seed: int | None, tally: _Tally) -> Iterator[Sequence]:
        samples = self._samples(epoch, shuffle_seed, tally)
        if self.packed:
            return pack(samples, max_length=self.max_length)
        return (join([sample]) for sample in samples)

    def _samples(self, epoch: int, shuffle_seed: int | None, tally: _Tally) -> Iterator[Sample]:
        for row in self.source.rows(epoch=epoch, shuffle_seed=shuffle_seed):
            example = read_example(row, self.source.format, task=self.task)
            sample = self.encode(example, where=row.where)
            tally.rows += 1
            tally.cut += sample.cut > 0
            if sample.targets:
                yield sample
            else:
                tally.dropped += 1

    def _dealt(self, sequences: Iterable[Sequence]) -> Iterator[Step]:
        stream = iter(sequences)
        while batch := list(islice(stream, self.batch_size)):
            yield self._step(batch)

    def _step(self, batch: list[Sequence]) -> Step:
        length = self._length(batch)
        # Any number of workers: where they don't divide the batch, the last of them get filler.
        share, size = -(-self.batch_size // self.world_size), self.micro_batch_size
        mine = batch[self.rank * share : (self.rank + 1) * share]
        micros = [mine[at : at + size] for at in range(0, share, size)]
        micros = [[*micro, *[FILLER] * (size - len(micro))] for micro in micros]
        return Step(
            micros=tuple(self.collate(micro, length=length) for micro in micros),
            targets=sum(map(count_targets, batch)),
            tokens=sum(map(len, batch)),
            rows=len(batch),
        )

    def _length(self, batch: list[Sequence]) -> int:
        """The same on every rank: from the whole batch, never from a rank's slice."""
        if self.packed:
            return self.max_length
        longest = max(map(len, batch))
        # Rounding up must not pass the last position that the model has.
        return min(-(-longest // MULTIPLE) * MULTIPLE, self.max_length)

    def nothing(self) -> Fault:
        """That no row of this side has a target, in words."""
        problem = f"no row of {self.source.part} has a target within {self.max_length} tokens"
        return Fault("data.max_length", problem, "Raise it, or shorten the prompts.")


@dataclass
class _Tally:
    rows: int = 0
    cut: int = 0
    dropped: int = 0


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do where nothing looks; the model must only have it."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    return 0


__all__ = ["Batch", "Count", "Feed", "Sequence", "Source", "Step"]
