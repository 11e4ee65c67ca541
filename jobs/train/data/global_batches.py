"""Split the global batches of a run over its workers; the batches do not depend on their number.

Every worker streams every row and uses its slice. So each knows the targets of the whole batch
without communication, and the number of workers changes only which of them computes a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

from jobs.errors import Fault, InputError
from jobs.plan.packing_choice import PackingMode
from jobs.spec.tasks import TargetKind
from jobs.train.data.collate import Batch, Collator, count_targets, make_filler
from jobs.train.data.packing import TokenSequence, join_samples, pack_samples
from jobs.train.data.source import SampleSource
from jobs.train.data.tokenization import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTH_MULTIPLE = 8
"""Lengths are rounded up to a multiple of this, which suits tensor cores."""


@dataclass(frozen=True)
class Step:
    """The work of this rank in one optimiser step."""

    micros: tuple[Batch, ...]
    """The same number on every rank."""
    targets: int
    """Targets of the global batch, over all ranks."""
    tokens: int
    """Tokens of the global batch, without padding."""
    rows: int
    """Sequences of the global batch, without filler."""


@dataclass(frozen=True)
class DatasetCount:
    """The counts of one epoch."""

    sequences: int
    rows: int
    """Rows and pieces of long texts, dropped ones included."""
    tokens: int
    targets: int
    truncated: int
    """Rows that were longer than max_length."""
    dropped: int
    """Rows without a target, most often because it was cut off."""
    fill: float
    """Share of max_length that holds tokens, on average."""


class Feed:
    """The training or the evaluation rows, as steps."""

    def __init__(
        self,
        source: SampleSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind: TargetKind,
        max_length: int,
        packing: PackingMode,
        batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool = True,
        embeddings: int | None = None,
        pads_left: bool = False,
    ) -> None:
        """`embeddings`: the number of tokens that the model knows; padding is one of them.
        `pads_left`: a classifier reads the last position.
        """
        self.source, self.kind, self.max_length = source, kind, max_length
        if packing == "undecided":
            raise ValueError("the packing is undecided: settle it with the loaded model first")
        self.packed = packing != "off"
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rank, self.world_size = rank, world_size
        self.shuffle_seed = seed if shuffle else None
        self.collate = Collator(
            pad_id=choose_pad_id(tokenizer, embeddings),
            packing=packing,
            kind=kind,
            token_types="token_type_ids" in tokenizer.model_input_names,
            pads_left=pads_left and kind not in ("tokens", "completion"),
        )

    def count(self) -> DatasetCount:
        """Count epoch 0 by reading it once."""
        tally = _RowTally()
        sequences = tokens = targets = filled = 0
        for sequence in self._iter_sequences(0, self.shuffle_seed, tally):
            sequences += 1
            filled += len(sequence)
            tokens += sequence.tokens
            targets += count_targets(sequence)
        fill_ratio = filled / (sequences * self.max_length) if sequences else 0.0
        return DatasetCount(
            sequences, tally.rows, tokens, targets, tally.truncated, tally.dropped, fill_ratio
        )

    def iter_steps(
        self, *, start: int = 0, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[Step]:
        """Yield the global batches from `start` to the end of the run: its steps or its epochs.

        `steps` counts from the beginning of the run and not from `start`: a resumed run repeats it.
        """
        sequences = self._iter_sequences_from(start * self.batch_size, epochs)
        remaining = None if steps is None else max(0, steps - start)
        yield from islice(self._iter_batches(sequences), remaining)

    def iter_epoch(self) -> Iterator[Step]:
        """Return one pass in the order of the files, for evaluation; the last step has filler."""
        return self._iter_batches(self._iter_sequences(0, None, _RowTally()))

    def _iter_sequences_from(self, skip: int, epochs: int | None) -> Iterator[TokenSequence]:
        """Yield the epochs one after the other, without the first `skip` sequences."""
        epoch_size: int | None = None
        for epoch in count() if epochs is None else range(epochs):
            # Without packing every epoch is as long as the first one read.
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
        for samples in self.source.iter_rows_of_samples(epoch=epoch, shuffle_seed=shuffle_seed):
            learnt = [sample for sample in samples if sample.targets]
            tally.rows += 1
            tally.truncated += any(sample.truncated for sample in samples)
            tally.dropped += not learnt
            yield from learnt

    def _iter_batches(self, sequences: Iterable[TokenSequence]) -> Iterator[Step]:
        stream = iter(sequences)
        while batch := list(islice(stream, self.batch_size)):
            yield self._make_step(batch)

    def _make_step(self, batch: list[TokenSequence]) -> Step:
        length = self._choose_length(map(len, batch))
        label_length = None
        if self.kind == "completion":
            label_length = self._choose_length(len(sequence.labels) for sequence in batch)
        # If the number of workers does not divide the batch, the last ones get filler.
        rows_per_rank, micro_size = -(-self.batch_size // self.world_size), self.micro_batch_size
        own_rows = batch[self.rank * rows_per_rank : (self.rank + 1) * rows_per_rank]
        micros = [
            own_rows[start : start + micro_size] for start in range(0, rows_per_rank, micro_size)
        ]
        filler = make_filler(batch[0], self.kind)
        micros = [[*micro, *[filler] * (micro_size - len(micro))] for micro in micros]
        return Step(
            micros=tuple(
                self.collate(micro, length=length, label_length=label_length) for micro in micros
            ),
            targets=sum(map(count_targets, batch)),
            tokens=sum(sequence.tokens for sequence in batch),
            rows=len(batch),
        )

    def _choose_length(self, lengths: Iterable[int]) -> int:
        """Return the length of a batch, the same on every rank: no slice of a rank decides it."""
        if self.packed:
            return self.max_length
        longest = max(1, *lengths)
        # Rounding up must not pass the last position that the model has.
        return min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, self.max_length)

    def make_no_target_fault(self) -> Fault:
        """Return the fault that no row has a target."""
        problem = f"no {self.source.split} row has a target within {self.max_length} tokens"
        return Fault("data.max_length", problem, "Increase it, or shorten the prompts.")


@dataclass
class _RowTally:
    rows: int = 0
    truncated: int = 0
    dropped: int = 0


def choose_pad_id(tokenizer: PreTrainedTokenizerBase, embeddings: int | None = None) -> int:
    """Return an id for padding. Any id of the model will do, because nothing attends to it."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None and (embeddings is None or token_id < embeddings):
            return int(token_id)
    return 0


__all__ = ["Batch", "DatasetCount", "Feed", "Step", "TokenSequence"]
