"""Sequences as tensors: padding, masks and labels of one micro-batch.

m: sequences in a micro-batch; L: tokens in a sequence, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.data.packing import Sequence
from jobs.data.tokens import IGNORED


@dataclass(frozen=True)
class Batch:
    """One micro-batch, on the CPU."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model."""
    labels: Tensor
    """[m, L], or [m] for a classifier; -100 where nothing is asked."""
    targets: int
    """Labels that count, after the causal shift."""
    tokens: int
    """Without padding."""


FILLER = Sequence((), (), (), (), rows=0)
"""Stands where a last batch has no row left: all padding, and nothing is asked of it."""


@dataclass(frozen=True)
class Collator:
    """How sequences become tensors."""

    pad_id: int
    packed: bool
    classifies: bool
    token_types: bool

    def __call__(self, sequences: Listed[Sequence], *, length: int) -> Batch:
        """One micro-batch, padded on the right to `length`."""
        segments_mL = _padded([one.segment_ids for one in sequences], 0, length)
        inputs = {
            "input_ids": _padded([one.input_ids for one in sequences], self.pad_id, length),
            "attention_mask": _blocks(segments_mL) if self.packed else _flat(segments_mL),
        }
        if self.packed:
            inputs["position_ids"] = _padded([one.position_ids for one in sequences], 0, length)
        if self.token_types:
            inputs["token_type_ids"] = torch.zeros_like(segments_mL)
        return Batch(
            inputs=inputs,
            labels=self._labels(sequences, length),
            targets=sum(count_targets(one) for one in sequences),
            tokens=sum(len(one) for one in sequences),
        )

    def _labels(self, sequences: Listed[Sequence], length: int) -> Tensor:
        if not self.classifies:
            return _padded([one.labels for one in sequences], IGNORED, length)
        return _padded([one.labels for one in sequences], IGNORED, 1)[:, 0]


def count_targets(sequence: Sequence) -> int:
    """Labels that count. A segment's first label is never one, so the causal shift loses none."""
    return sum(label != IGNORED for label in sequence.labels)


def _padded(rows: Listed[tuple[int, ...]], filler: int, length: int) -> Tensor:
    out = torch.full((len(rows), length), filler, dtype=torch.int64)
    for at, row in enumerate(rows):
        out[at, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return out


def _blocks(segments_mL: Tensor) -> Tensor:
    """[m, 1, L, L], True where a token (row) may look at another (column)."""
    length = segments_mL.shape[1]
    same = segments_mL[:, :, None] == segments_mL[:, None, :]
    real = (segments_mL > 0)[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    # Padding looks at itself: a softmax over nothing would be NaN, and spread through the gradient.
    itself = torch.eye(length, dtype=torch.bool)
    return ((same & causal & real) | itself)[:, None]


def _flat(segments_mL: Tensor) -> Tensor:
    """[m, L], 1 for tokens. A filler row keeps one token, for the same reason as above."""
    mask = (segments_mL > 0).to(torch.int64)
    mask[:, 0] = 1
    return mask
