"""Collate sequences into tensors: padding, masks and labels of one micro-batch.

m: sequences in a micro-batch; L: tokens in a sequence, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.plan.packing_choice import PackingMode
from jobs.train.data.packing import TokenSequence
from jobs.train.data.tokenization import IGNORE_INDEX


@dataclass(frozen=True)
class Batch:
    """A micro-batch, on the CPU."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model."""
    labels: Tensor
    """[m, L], or [m] for a classifier; -100 where no prediction is asked for."""
    targets: int
    """Number of labels that are not ignored, after the causal shift."""
    tokens: int
    """Number of tokens without padding."""
    packing: PackingMode = "off"
    """How rows that share a sequence are told apart; `make_model_inputs` makes the masks."""


FILLER_SEQUENCE = TokenSequence((), (), (), (), rows=0)
"""Fills up a last batch: all padding, without targets."""


@dataclass(frozen=True)
class Collator:
    """Turns sequences into tensors."""

    pad_id: int
    packing: PackingMode
    is_classifier: bool
    token_types: bool

    def __call__(self, sequences: Sequence[TokenSequence], *, length: int) -> Batch:
        """Return one micro-batch, padded on the right to `length`."""
        segments_mL = _pad_rows([sequence.segment_ids for sequence in sequences], 0, length)
        inputs = {
            "input_ids": _pad_rows(
                [sequence.input_ids for sequence in sequences], self.pad_id, length
            )
        }
        if self.packing == "off":
            inputs["attention_mask"] = _make_flat_mask(segments_mL)
        else:
            # Each padding token starts at 0 again: a row of its own, which attends to itself.
            inputs["position_ids"] = _pad_rows(
                [sequence.position_ids for sequence in sequences], 0, length
            )
        if self.token_types:
            inputs["token_type_ids"] = torch.zeros_like(segments_mL)
        return Batch(
            inputs=inputs,
            labels=self._collate_labels(sequences, length),
            targets=sum(count_targets(sequence) for sequence in sequences),
            tokens=sum(len(sequence) for sequence in sequences),
            packing=self.packing,
        )

    def _collate_labels(self, sequences: Sequence[TokenSequence], length: int) -> Tensor:
        if not self.is_classifier:
            return _pad_rows([sequence.labels for sequence in sequences], IGNORE_INDEX, length)
        return _pad_rows([sequence.labels for sequence in sequences], IGNORE_INDEX, 1)[:, 0]


def count_targets(sequence: TokenSequence) -> int:
    """Count the labels that are not ignored. The first label of a segment always is, so the causal
    shift loses none."""
    return sum(label != IGNORE_INDEX for label in sequence.labels)


def _pad_rows(rows: Sequence[tuple[int, ...]], pad_value: int, length: int) -> Tensor:
    padded = torch.full((len(rows), length), pad_value, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded


def _make_flat_mask(segments_mL: Tensor) -> Tensor:
    """Return [m, L], 1 for tokens. A filler row has one: a softmax over nothing is NaN, which the
    gradient would spread."""
    mask = (segments_mL > 0).to(torch.int64)
    mask[:, 0] = 1
    return mask
