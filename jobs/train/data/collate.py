"""Collate sequences into tensors: padding, masks and labels of one micro-batch.

m: sequences in a micro-batch; L: tokens in a sequence, padding included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jobs.plan.packing_choice import PackingMode
from jobs.spec.tasks import TargetKind
from jobs.train.data.packing import TokenSequence
from jobs.train.data.tokenization import IGNORE_INDEX


@dataclass(frozen=True)
class Batch:
    """A micro-batch, on the CPU."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model."""
    labels: Tensor
    """[m, L] of tokens; [m] of classes or numbers; [m, C] of several classes, as 0 and 1. -100, or
    NaN for a number, where no prediction is asked for."""
    targets: int
    """Number of labels that are not ignored, after the causal shift."""
    tokens: int
    """Number of tokens without padding."""
    packing: PackingMode = "off"
    """How rows that share a sequence are told apart; `make_model_inputs` makes the masks."""
    kind: TargetKind = "tokens"


def make_filler(sequence: TokenSequence, kind: TargetKind) -> TokenSequence:
    """Return what fills up a last batch, without targets: padding for a language model. Others get
    a copy of a sequence, which has what they need of a row, such as its end token.
    """
    if kind == "tokens":
        return TokenSequence((), (), (), (), rows=0, tokens=0)
    return replace(sequence, rows=0, tokens=0)


@dataclass(frozen=True)
class Collator:
    """Turns sequences into tensors."""

    pad_id: int
    packing: PackingMode
    kind: TargetKind
    token_types: bool
    pads_left: bool = False

    def __call__(
        self, sequences: Sequence[TokenSequence], *, length: int, label_length: int | None = None
    ) -> Batch:
        """Return one micro-batch, padded to `length`; completions to theirs."""
        segments_mL = self._pad_rows([sequence.segment_ids for sequence in sequences], 0, length)
        inputs = {
            "input_ids": self._pad_rows(
                [sequence.input_ids for sequence in sequences], self.pad_id, length
            )
        }
        if self.packing == "off":
            inputs["attention_mask"] = _make_flat_mask(segments_mL, -1 if self.pads_left else 0)
        else:
            # Each padding token starts at 0 again: a row of its own, which attends to itself.
            inputs["position_ids"] = self._pad_rows(
                [sequence.position_ids for sequence in sequences], 0, length
            )
        if self.token_types:
            inputs["token_type_ids"] = self._pad_rows([s.type_ids for s in sequences], 0, length)
        if self.kind == "completion":
            rows = [_list_tokens(sequence) for sequence in sequences]
            # The decoder also reads a filler's answer: some models can't shift an empty one.
            inputs["labels"] = _pad_rows(rows, IGNORE_INDEX, label_length or length)
        return Batch(
            inputs=inputs,
            labels=self._collate_labels(sequences, label_length or length),
            targets=sum(count_targets(sequence) for sequence in sequences),
            tokens=sum(sequence.tokens for sequence in sequences),
            packing=self.packing,
            kind=self.kind,
        )

    def _collate_labels(self, sequences: Sequence[TokenSequence], length: int) -> Tensor:
        if self.kind in ("tokens", "completion"):
            rows = [_list_tokens(sequence) if sequence.rows else () for sequence in sequences]
            return _pad_rows(rows, IGNORE_INDEX, length)
        ignored = math.nan if self.kind == "number" else IGNORE_INDEX
        labels = [s.labels if s.rows else (ignored,) * len(s.labels) for s in sequences]
        dtype = torch.int64 if self.kind == "class" else torch.float32
        labels_mC = torch.tensor(labels, dtype=dtype)
        return labels_mC if self.kind == "classes" else labels_mC[:, 0]

    def _pad_rows(self, rows: Sequence[tuple[int, ...]], pad_value: int, length: int) -> Tensor:
        return _pad_rows(rows, pad_value, length, left=self.pads_left)


def count_targets(sequence: TokenSequence) -> int:
    """Count the labels that are not ignored. The first label of a segment always is, so the causal
    shift loses none."""
    if not sequence.rows:
        return 0
    return sum(label != IGNORE_INDEX for label in sequence.labels)


def _list_tokens(sequence: TokenSequence) -> tuple[int, ...]:
    return tuple(map(int, sequence.labels))


def _pad_rows(
    rows: Sequence[tuple[int, ...]], pad_value: int, length: int, *, left: bool = False
) -> Tensor:
    padded = torch.full((len(rows), length), pad_value, dtype=torch.int64)
    for index, row in enumerate(rows):
        start = length - len(row) if left else 0
        padded[index, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded


def _make_flat_mask(segments_mL: Tensor, first: int) -> Tensor:
    """Return [m, L], 1 for tokens. A filler row has one at `first`, where any row has a token: a
    softmax over nothing is NaN, which the gradient would spread."""
    mask = (segments_mL > 0).to(torch.int64)
    mask[:, first] = 1
    return mask
