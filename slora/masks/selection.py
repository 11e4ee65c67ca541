"""Turn scores into masks: the best entries, rows, columns or blocks, per layer or over all layers.

O, I: rows and columns of a weight. Z: entries of a mask.

Scores arrive one layer at a time and are dropped again; for layers that compete, only as many
candidates are held as there are entries to assign. Ties go to the lower position, so that equal
scores give equal masks everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from slora.errors import BadMask
from slora.layers.patterns import count_entries
from slora.masks.mask import BlockMask, EntryMask, Mask, draw_distinct, draw_random_mask
from slora.masks.registry import load_scorer
from slora.masks.sizes import STRUCTURES, compute_block_sides
from slora.masks.strategy import Scorer
from slora.masks.top_k import CandidatePool

Shapes = Mapping[str, tuple[int, int]]
Scores = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class MaskRequest:
    """Describe the requested masks, with the spec's keys of the same names."""

    mask: str
    score: str
    sizing: Literal["rank", "density"]
    rank: int
    density: float
    allocation: Literal["uniform", "global"]
    seed: int

    @property
    def is_structured(self) -> bool:
        """Return True if rows, columns or blocks are selected."""
        return self.mask in STRUCTURES

    @property
    def score_name(self) -> str:
        """Return the name of the score that selects the entries."""
        return self.score if self.is_structured else self.mask

    def compute_sides(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the number of rows and columns of a structured mask of this layer."""
        rank = self.rank if self.sizing == "rank" else None
        return compute_block_sides(self.mask, shape, density=self.density, rank=rank)


def find_scorer(request: MaskRequest) -> Scorer | None:
    """Return the score that `choose_masks` needs, None if nothing is scored. Raise BadMask."""
    check_request(request)
    return None if request.score_name == "random" else load_scorer(request.score_name)


def check_request(request: MaskRequest) -> None:
    """Raise BadMask for an impossible combination."""
    if request.allocation == "global" and request.score_name == "random":
        raise BadMask("random masks have no scores to compare: use allocation: uniform")
    if request.allocation == "global" and request.mask == "blocks":
        raise BadMask(
            "blocks can't compete across layers: use rows, columns or allocation: uniform"
        )


def choose_masks(
    shapes: Shapes, request: MaskRequest, scores: Scores | None = None
) -> dict[str, Mask]:
    """Return every layer's mask; `scores` yields float32 `[O, I]` in the order of `shapes`.

    Raise BadMask for a score that is missing, of another shape, or not finite.
    """
    if find_scorer(request) is None:
        return {name: _draw_mask(name, shape, request) for name, shape in shapes.items()}
    if scores is None:
        raise BadMask(f"{request.score_name} masks need scores, but there are none")
    checked_scores = _check_scores(scores, shapes)
    if request.allocation == "global":
        return _choose_globally(shapes, request, checked_scores)
    return {name: _choose_best(score, request) for name, score in checked_scores}


def _draw_mask(name: str, shape: tuple[int, int], request: MaskRequest) -> Mask:
    if not request.is_structured:
        return draw_random_mask(seed=request.seed, name=name, shape=shape, density=request.density)
    sides = zip(("rows", "columns"), shape, request.compute_sides(shape), strict=True)
    rows, columns = (
        draw_distinct(count, size, key=f"{request.seed}\0{name}\0{shape[0]}x{shape[1]}\0{axis}")
        for axis, size, count in sides
    )
    return BlockMask(shape, rows, columns)


def _check_scores(scores: Scores, shapes: Shapes) -> Iterable[tuple[str, Tensor]]:
    remaining = dict(shapes)
    for name, score in scores:
        expected = remaining.pop(name, None)
        if tuple(score.shape) != expected:
            raise BadMask(f"{name}: the score has shape {tuple(score.shape)}, not {expected}")
        # Use the CPU, which sorts equal scores in the same order on every machine.
        score = score.detach().float().cpu()
        if not torch.isfinite(score).all():
            raise BadMask(f"{name}: its score contains values that are not finite")
        yield name, score
    if remaining:
        raise BadMask(f"the score of {next(iter(remaining))} is missing")


def _choose_best(score_OI: Tensor, request: MaskRequest) -> Mask:
    """Return the best mask of one layer on its own."""
    shape = (score_OI.shape[0], score_OI.shape[1])
    if not request.is_structured:
        return EntryMask(
            shape, select_top(score_OI.flatten(), count_entries(shape, request.density))
        )
    side_counts = request.compute_sides(shape)
    rows, columns = torch.arange(shape[0]), torch.arange(shape[1])
    if request.mask != "columns":
        rows = select_top(score_OI.double().sum(1), side_counts[0])
    if request.mask != "rows":
        columns = select_top(score_OI[rows].double().sum(0), side_counts[1])
    return BlockMask(shape, rows, columns)


def select_top(score: Tensor, count: int) -> Tensor:
    """Return positions of the `count` highest values, ascending, int64; ties go to the first."""
    if count >= score.numel():
        return torch.arange(score.numel())
    flat = score.numpy()
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    above = np.flatnonzero(flat > threshold)
    equal = np.flatnonzero(flat == threshold)[: count - above.size]
    return torch.from_numpy(np.sort(np.concatenate((above, equal))).astype(np.int64))


def _choose_globally(shapes: Shapes, request: MaskRequest, scores: Scores) -> dict[str, Mask]:
    """Let layers compete for the total of uniform masks; each layer keeps its best candidate."""
    counts = {name: _count_slots(shape, request) for name, shape in shapes.items()}
    pool = CandidatePool(
        sum(counts.values()), max_per_layer=request.rank if _is_rank_limited(request) else None
    )
    for name, score_OI in scores:
        pool.offer(name, _make_candidates(score_OI, request))
    positions = pool.select_positions()
    return {name: _make_mask(shapes[name], positions[name], request) for name in shapes}


def _is_rank_limited(request: MaskRequest) -> bool:
    return request.is_structured and request.sizing == "rank"


def _count_slots(shape: tuple[int, int], request: MaskRequest) -> int:
    if not request.is_structured:
        return count_entries(shape, request.density)
    return request.compute_sides(shape)[0 if request.mask == "rows" else 1]


def _make_candidates(score_OI: Tensor, request: MaskRequest) -> Tensor:
    """Return the competitors: entries, or rows or columns by their mean, whatever their width."""
    if not request.is_structured:
        return score_OI.flatten()
    return score_OI.double().mean(1 if request.mask == "rows" else 0).float()


def _make_mask(shape: tuple[int, int], positions: Tensor, request: MaskRequest) -> Mask:
    if not request.is_structured:
        return EntryMask(shape, positions)
    if request.mask == "rows":
        return BlockMask(shape, positions, torch.arange(shape[1]))
    return BlockMask(shape, torch.arange(shape[0]), positions)
