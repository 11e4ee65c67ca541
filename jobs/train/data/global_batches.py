"""The global batches of a run, dealt to its workers. The same batches whatever their number.

Every worker streams every row and keeps its slice: so each knows the targets of the whole batch
without asking, and the count of workers changes nothing but who computes what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.formats import read_example
from jobs.train.data.collate import FILLER_SEQUENCE, Batch, Collator, count_targets
from jobs.train.data.packing import TokenSequence, join_samples, pack_samples
from jobs.train.data.source import RowSource
from jobs.train.data.token_cache import CachingEncoder
from jobs.train.data.tokenization import Encoder, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTH_MULTIPLE = 8
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
class DatasetCount:
    """What one epoch holds."""

    sequences: int
    rows: int
    """Read, those dropped included."""
    tokens: int
    targets: int
    truncated: int
    """Rows that were longer than max_length."""
    dropped: int
    """Rows without a target, most often because it was cut off."""
    fill: float
    """Share of max_length that is tokens."""


class Feed:
    """One side of the data, as steps."""

    def __init__(
        self,
        source: RowSource,
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
        token_cache: dict[Any, Sample] | None = None,
    ) -> None:
        """With `token_cache`, which equal feeds may share, no row is tokenised twice."""
        self.source, self.task, self.max_length = source, task, max_length
        self.packed = packing and task == "causal-lm"
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rank, self.world_size = rank, world_size
        self.shuffle_seed = seed if shuffle else None
        encoder = Encoder(tokenizer, max_length=max_length, labels=source.labels)
        self._encode = encoder if token_cache is None else CachingEncoder(encoder, token_cache)
        self.collate = Collator(
            pad_id=_get_pad_id(tokenizer),
            packed=self.packed,
            is_classifier=task == "sequence-classification",
            token_types="token_type_ids" in tokenizer.model_input_names,
        )

    def count(self) -> DatasetCount:
        """What epoch 0 holds, by going through it once."""
        tally = _RowTally()
        sequences = tokens = targets = 0
        for sequence in self._iter_sequences(0, self.shuffle_seed, tally):
            sequences += 1
            tokens += len(sequence)
            targets += count_targets(sequence)
        fill_ratio = tokens / (sequences * self.max_length) if sequences else 0.0
        return DatasetCount(
            sequences, tally.rows, tokens, targets, tally.truncated, tally.dropped, fill_ratio
        )

    def iter_steps(
        self, *, start: int = 0, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[Step]:
        """Global batches from `start` to the end of the run: its steps, its epochs, or neither.

        `steps` counts from the beginning of the run and not from `start`: a resumed run repeats it.
        """
        sequences = self._iter_sequences_from(start * self.batch_size, epochs)
        remaining = None if steps is None else max(0, steps - start)
        yield from islice(self._iter_batches(sequences), remaining)

    def iter_epoch(self) -> Iterator[Step]:
        """One pass in the order of the files, for evaluation; the last step is filled up."""
        return self._iter_batches(self._iter_sequences(0, None, _RowTally()))

    def _iter_sequences_from(self, skip: int, epochs: int | None) -> Iterator[TokenSequence]:
        """The epochs one after the other, without the first `skipped` sequences."""
        epoch_size: int | None = None
        for epoch in count() if epochs is None else range(epochs):
            # Unpacked, every epoch is as long as the first that was gone through.
            if epoch_size is not None and not self.packed and skip >= epoch_size:
                skip -= epoch_size
                continue
            epoch_size = 0
            for sequence in self._iter_sequences(epoch, self.shuffle_seed, _RowTally()):
                epoch_size += 1
                if skip:
                    skip -= 1
                else:
                    yield sequence
            if not epoch_size:
                raise InputError([self.make_no_target_fault()])

    def _iter_sequences(
        self, epoch: int, shuffle_seed: int | None, tally: _RowTally
    ) -> Iterator[TokenSequence]:
        samples = self._iter_samples(epoch, shuffle_seed, tally)
        if self.packed:
            return pack_samples(samples, max_length=self.max_length)
        return (join_samples([sample]) for sample in samples)

    def _iter_samples(
        self, epoch: int, shuffle_seed: int | None, tally: _RowTally
    ) -> Iterator[Sample]:
        for row in self.source.iter_rows(epoch=epoch, shuffle_seed=shuffle_seed):
            example = read_example(row, self.source.format, task=self.task)
            sample = self._encode(example, where=row.location)
            tally.rows += 1
            tally.truncated += sample.truncated > 0
            if sample.targets:
                yield sample
            else:
                tally.dropped += 1

    def _iter_batches(self, sequences: Iterable[TokenSequence]) -> Iterator[Step]:
        stream = iter(sequences)
        while batch := list(islice(stream, self.batch_size)):
            yield self._make_step(batch)

    def _make_step(self, batch: list[TokenSequence]) -> Step:
        length = self._choose_length(batch)
        # Any number of workers: where they don't divide the batch, the last of them get filler.
        rows_per_rank, micro_size = -(-self.batch_size // self.world_size), self.micro_batch_size
        own_rows = batch[self.rank * rows_per_rank : (self.rank + 1) * rows_per_rank]
        micros = [
            own_rows[start : start + micro_size] for start in range(0, rows_per_rank, micro_size)
        ]
        micros = [[*micro, *[FILLER_SEQUENCE] * (micro_size - len(micro))] for micro in micros]
        return Step(
            micros=tuple(self.collate(micro, length=length) for micro in micros),
            targets=sum(map(count_targets, batch)),
            tokens=sum(map(len, batch)),
            rows=len(batch),
        )

    def _choose_length(self, batch: list[TokenSequence]) -> int:
        """The same on every rank: from the whole batch, never from a rank's slice."""
        if self.packed:
            return self.max_length
        longest = max(map(len, batch))
        # Rounding up must not pass the last position that the model has.
        return min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, self.max_length)

    def make_no_target_fault(self) -> Fault:
        """That no row of this side has a target, in words."""
        problem = f"no row of {self.source.split} has a target within {self.max_length} tokens"
        return Fault("data.max_length", problem, "Raise it, or shorten the prompts.")


@dataclass
class _RowTally:
    rows: int = 0
    truncated: int = 0
    dropped: int = 0


def _get_pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do where nothing looks; the model must only have it."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


__all__ = ["Batch", "DatasetCount", "Feed", "RowSource", "Step", "TokenSequence"]
