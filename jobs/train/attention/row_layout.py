"""The rows of a batch, and the slots in which those of about the same length are computed together.

m: sequences of a batch; L: tokens of a sequence; T = m * L; S: slots, at least one for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LEAST_SHARE = 0.75
"""Length of the shortest row of a group, as a share of the longest: below it, computing with the
padding costs more than another call of the kernel."""


@dataclass(frozen=True)
class RowGroup:
    """Rows of about the same length, each padded at its end to the longest of them."""

    rows: int
    length: int


@dataclass(frozen=True)
class RowLayout:
    """Where each row of a batch starts and ends: what attention needs instead of a mask."""

    sequences: int
    length: int
    """Tokens of each sequence."""
    longest: int
    """Tokens of the longest row."""
    groups: tuple[RowGroup, ...]
    slot_tokens_S: Tensor
    """The token in each slot, group by group; a slot behind a row's end repeats its last token."""
    token_slots_T: Tensor
    """The slot of each token."""
    empty_slots: Tensor
    """The slots behind the ends of rows."""
    bounds: Tensor
    """The first token of each row, and T at the end: int32, as kernels for rows take them."""


def make_layout(
    starts: Sequence[int], *, sequences: int, length: int, device: Any = None
) -> RowLayout:
    """Return the layout of rows that start at these tokens of the flattened batch, each up to the
    next one. Each sequence must start a row.
    """
    total = sequences * length
    bounds = [*starts, total]
    lengths = [end - start for start, end in pairwise(bounds)]
    slot_tokens, is_empty, groups = [], [], []
    for members in _group_rows(lengths):
        first_N = torch.tensor([bounds[row] for row in members])
        last_N1 = torch.tensor([lengths[row] - 1 for row in members])[:, None]
        offsets = torch.arange(lengths[members[0]])[None]
        slot_tokens.append((first_N[:, None] + torch.minimum(offsets, last_N1)).flatten())
        is_empty.append((offsets > last_N1).flatten())
        groups.append(RowGroup(len(members), lengths[members[0]]))
    slot_tokens_S, is_empty_S = torch.cat(slot_tokens), torch.cat(is_empty)
    token_slots_T = torch.empty(total, dtype=torch.int64)
    used_T = (~is_empty_S).nonzero().flatten()
    token_slots_T[slot_tokens_S[used_T]] = used_T
    return RowLayout(
        sequences,
        length,
        max(lengths),
        tuple(groups),
        slot_tokens_S.to(device),
        token_slots_T.to(device),
        is_empty_S.nonzero().flatten().to(device),
        torch.tensor(bounds, dtype=torch.int32).to(device),
    )


def _group_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Return the numbers of the rows in groups, the longest row of each first."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[groups[-1][0]] if groups else 0
        # Rows of one token, which all padding is, need no products: they are kept apart.
        if lengths[row] < LEAST_SHARE * longest or not groups or lengths[row] == 1 < longest:
            groups.append([])
        groups[-1].append(row)
    return groups
