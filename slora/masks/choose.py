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
from slora.mask import Block, Entries, Mask, draw, random_mask
from slora.masks.pool import Pool
from slora.masks.registry import scorer
from slora.masks.scorer import Scorer
from slora.names import entries
from slora.sizes import STRUCTURES, block_sides

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
    def structured(self) -> bool:
        """Whether whole rows, columns or blocks are chosen."""
        return self.mask in STRUCTURES

    @property
    def chosen_by(self) -> str:
        """The score's name."""
        return self.score if self.structured else self.mask

    def sides(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a structured mask of this layer."""
        rank = self.rank if self.sizing == "rank" else None
        return block_sides(self.mask, shape, density=self.density, rank=rank)


def needed(request: MaskRequest) -> Scorer | None:
    """The score that `choose_masks` wants, None where nothing is scored. Raises BadMask."""
    check(request)
    return None if request.chosen_by == "random" else scorer(request.chosen_by)


def check(request: MaskRequest) -> None:
    """Raises BadMask for what can't be chosen."""
    if request.allocation == "global" and request.chosen_by == "random":
        raise BadMask("random masks have no scores to compete by: use allocation: uniform")
    if request.allocation == "global" and request.mask == "blocks":
        raise BadMask("blocks of different layers can't compete: use rows, columns, or uniform")


def choose_masks(
    shapes: Shapes, request: MaskRequest, scores: Scores | None = None
) -> dict[str, Mask]:
    """Every layer's mask. `scores` gives float32 `[O, I]` for each layer in the order of `shapes`.

    Raises BadMask for a score that is missing, of another shape, or not finite.
    """
    if needed(request) is None:
        return {name: _drawn(name, shape, request) for name, shape in shapes.items()}
    if scores is None:
        raise BadMask(f"{request.chosen_by} masks are chosen by scores, and none are given")
    checked = _checked(scores, shapes)
    if request.allocation == "global":
        return _competing(shapes, request, checked)
    return {name: _best(score, request) for name, score in checked}


def _drawn(name: str, shape: tuple[int, int], request: MaskRequest) -> Mask:
    if not request.structured:
        return random_mask(seed=request.seed, name=name, shape=shape, density=request.density)
    sides = zip(("rows", "columns"), shape, request.sides(shape), strict=True)
    rows, columns = (
        draw(count, size, key=f"{request.seed}\0{name}\0{shape[0]}x{shape[1]}\0{axis}")
        for axis, size, count in sides
    )
    return Block(shape, rows, columns)


def _checked(scores: Scores, shapes: Shapes) -> Iterable[tuple[str, Tensor]]:
    left = dict(shapes)
    for name, score in scores:
        wanted = left.pop(name, None)
        if tuple(score.shape) != wanted:
            raise BadMask(f"{name}: a score of {tuple(score.shape)} for a weight of {wanted}")
        # On the CPU, where equal scores are sorted alike on every machine.
        score = score.detach().float().cpu()
        if not torch.isfinite(score).all():
            raise BadMask(f"{name}: its score has values that are not finite")
        yield name, score
    if left:
        raise BadMask(f"no score was given for {next(iter(left))}")


def _best(score_OI: Tensor, request: MaskRequest) -> Mask:
    """The best of one layer by itself."""
    shape = (score_OI.shape[0], score_OI.shape[1])
    if not request.structured:
        return Entries(shape, top(score_OI.flatten(), entries(shape, request.density)))
    count = request.sides(shape)
    rows, columns = torch.arange(shape[0]), torch.arange(shape[1])
    if request.mask != "columns":
        rows = top(score_OI.double().sum(1), count[0])
    if request.mask != "rows":
        columns = top(score_OI[rows].double().sum(0), count[1])
    return Block(shape, rows, columns)


def top(score: Tensor, count: int) -> Tensor:
    """Positions of the `count` highest of a vector, ascending; of equal ones the first. int64."""
    if count >= score.numel():
        return torch.arange(score.numel())
    flat = score.numpy()
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    above = np.flatnonzero(flat > threshold)
    equal = np.flatnonzero(flat == threshold)[: count - above.size]
    return torch.from_numpy(np.sort(np.concatenate((above, equal))).astype(np.int64))


def _competing(shapes: Shapes, request: MaskRequest, scores: Scores) -> dict[str, Mask]:
    """Layers compete for what uniform masks would have in all; each keeps its best one."""
    counts = {name: _places(shape, request) for name, shape in shapes.items()}
    pool = Pool(sum(counts.values()), most=request.rank if _limited(request) else None)
    for name, score_OI in scores:
        pool.offer(name, _candidates(score_OI, request))
    chosen = pool.chosen()
    return {name: _made(shapes[name], chosen[name], request) for name in shapes}


def _limited(request: MaskRequest) -> bool:
    return request.structured and request.sizing == "rank"


def _places(shape: tuple[int, int], request: MaskRequest) -> int:
    if not request.structured:
        return entries(shape, request.density)
    return request.sides(shape)[0 if request.mask == "rows" else 1]


def _candidates(score_OI: Tensor, request: MaskRequest) -> Tensor:
    """What competes: entries, or rows and columns by their mean, which knows no width."""
    if not request.structured:
        return score_OI.flatten()
    return score_OI.double().mean(1 if request.mask == "rows" else 0).float()


def _made(shape: tuple[int, int], positions: Tensor, request: MaskRequest) -> Mask:
    if not request.structured:
        return Entries(shape, positions)
    if request.mask == "rows":
        return Block(shape, positions, torch.arange(shape[1]))
    return Block(shape, torch.arange(shape[0]), positions)
