"""From scores to masks: the best entries, rows, columns or blocks, in each layer or over all.

O, I: rows and columns of a weight. Z: entries of a mask.

Scores come one layer at a time and are dropped again; of layers that compete, only as many
candidates are kept as there are entries to give. Equal scores go to the lower position, so that
equal scores give equal masks everywhere.
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
    """What masks are wanted: the spec's keys of the same names."""

    mask: str
    score: str
    sizing: Literal["rank", "density"]
    rank: int
    density: float
    allocation: Literal["uniform", "global"]
    seed: int

    @property
    def is_structured(self) -> bool:
        """Whether whole rows, columns or blocks are chosen."""
        return self.mask in STRUCTURES

    @property
    def score_name(self) -> str:
        """The score's name."""
        return self.score if self.is_structured else self.mask

    def compute_sides(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a structured mask of this layer."""
        rank = self.rank if self.sizing == "rank" else None
        return compute_block_sides(self.mask, shape, density=self.density, rank=rank)


def find_scorer(request: MaskRequest) -> Scorer | None:
    """The score that `choose_masks` wants, None where nothing is scored. Raises BadMask."""
    check_request(request)
    return None if request.score_name == "random" else load_scorer(request.score_name)


def check_request(request: MaskRequest) -> None:
    """Raises BadMask for what can't be chosen."""
    if request.allocation == "global" and request.score_name == "random":
        raise BadMask("random masks have no scores to compete by: use allocation: uniform")
    if request.allocation == "global" and request.mask == "blocks":
        raise BadMask("blocks of different layers can't compete: use rows, columns, or uniform")


def choose_masks(
    shapes: Shapes, request: MaskRequest, scores: Scores | None = None
) -> dict[str, Mask]:
    """Every layer's mask. `scores` gives float32 `[O, I]` for each layer in the order of `shapes`.

    Raises BadMask for a score that is missing, of another shape, or not finite.
    """
    if find_scorer(request) is None:
        return {name: _draw_mask(name, shape, request) for name, shape in shapes.items()}
    if scores is None:
        raise BadMask(f"{request.score_name} masks are chosen by scores, and none are given")
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
            raise BadMask(f"{name}: a score of {tuple(score.shape)} for a weight of {expected}")
        # On the CPU, where equal scores are sorted alike on every machine.
        score = score.detach().float().cpu()
        if not torch.isfinite(score).all():
            raise BadMask(f"{name}: its score has values that are not finite")
        yield name, score
    if remaining:
        raise BadMask(f"no score was given for {next(iter(remaining))}")


def _choose_best(score_OI: Tensor, request: MaskRequest) -> Mask:
    """The best of one layer by itself."""
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
    """Positions of the `count` highest of a vector, ascending; of equal ones the first. int64."""
    if count >= score.numel():
        return torch.arange(score.numel())
    flat = score.numpy()
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    above = np.flatnonzero(flat > threshold)
    equal = np.flatnonzero(flat == threshold)[: count - above.size]
    return torch.from_numpy(np.sort(np.concatenate((above, equal))).astype(np.int64))


def _choose_globally(shapes: Shapes, request: MaskRequest, scores: Scores) -> dict[str, Mask]:
    """Layers compete for what uniform masks would have in all; each keeps its best one."""
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
    """What competes: entries, or rows and columns by their mean, which knows no width."""
    if not request.is_structured:
        return score_OI.flatten()
    return score_OI.double().mean(1 if request.mask == "rows" else 0).float()


def _make_mask(shape: tuple[int, int], positions: Tensor, request: MaskRequest) -> Mask:
    if not request.is_structured:
        return EntryMask(shape, positions)
    if request.mask == "rows":
        return BlockMask(shape, positions, torch.arange(shape[1]))
    return BlockMask(shape, torch.arange(shape[0]), positions)
