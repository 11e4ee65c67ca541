"""Steps that workers take alone, and how one set of weights comes of them.

n: numbers that are trained. After some steps of its own, each worker has moved from the common
weights (the anchor) by a delta. The mean of the deltas is exact for sparse values, which enter the
model one by one. For LoRA factors it is not: the mean of B times the mean of A is not the mean of
B A, and `average: product` takes the latter instead, cut to the rank again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jobs.bucket import Bucket
from jobs.team import GRADIENTS, Team
from slora.average import mean_product

OUTER_RATE, OUTER_MOMENTUM = 0.7, 0.9
"""DiLoCo's outer Nesterov step (Douillard et al., 2023, arXiv 2311.08105)."""


class LocalSteps:
    """What all workers agreed on last, and the outer step from there."""

    def __init__(self, bucket: Bucket, team: Team, outer: str, average: str) -> None:
        self._bucket, self._team, self._product = bucket, team, average == "product"
        self._anchor_n = bucket.weights_n.detach().clone()
        self.momentum_n = torch.zeros_like(self._anchor_n) if outer == "nesterov" else None

    def anchor(self) -> None:
        """Takes the weights as they are for what all agreed on."""
        self._anchor_n.copy_(self._bucket.weights_n.detach())

    def delta_into(self, travelling_n: Tensor) -> tuple[float, float]:
        """This worker's part of the mean delta, to be summed over all.

        Returns what the rank of this worker's layers could not hold of their mean products, and
        all of these, as energies: squared Frobenius norms.
        """
        torch.sub(self._bucket.weights_n.detach(), self._anchor_n, out=travelling_n)
        travelling_n.div_(self._team.world_size)
        return self._averaged_products(travelling_n) if self._product else (0.0, 0.0)

    def settle(self, delta_n: Tensor) -> None:
        """The outer step along the mean delta; every worker goes on from there."""
        if self.momentum_n is None:
            self._anchor_n.add_(delta_n)
        else:
            self.momentum_n.mul_(OUTER_MOMENTUM).add_(delta_n)
            self._anchor_n.add_(delta_n + OUTER_MOMENTUM * self.momentum_n, alpha=OUTER_RATE)
        with torch.no_grad():
            self._bucket.weights_n.copy_(self._anchor_n)

    def _averaged_products(self, travelling_n: Tensor) -> tuple[float, float]:
        """Replaces the factors' deltas: the worker whose turn a layer is computes and sends it."""
        lost = energy = 0.0
        for number, (name, a, b) in enumerate(self._factors()):
            owner = number % self._team.world_size
            mine = torch.cat((a.flatten(), b.flatten()))
            gathered = self._gathered(mine, owner)
            for slot in (f"{name}.a_RI", f"{name}.b_OR"):
                self._bucket.part(travelling_n, slot).zero_()
            if self._team.rank != owner:
                continue
            sizes = [a.numel(), b.numel()]
            cut = (torch.split(both, sizes) for both in gathered)
            pairs = [(x.view_as(a), y.view_as(b)) for x, y in cut]
            made = mean_product(pairs)
            for slot, tensor in ((f"{name}.a_RI", made.a_RI), (f"{name}.b_OR", made.b_OR)):
                anchor = self._bucket.part(self._anchor_n, slot)
                self._bucket.part(travelling_n, slot).copy_(tensor - anchor)
            lost, energy = lost + made.lost, energy + made.energy
        return lost, energy

    def _gathered(self, mine: Tensor, owner: int) -> list[Tensor]:
        size = self._team.world_size
        found = [torch.empty_like(mine) for _ in range(size)] if self._team.rank == owner else None
        torch.distributed.gather(mine, found, dst=owner)
        if self._team.rank != owner:
            self._team.wire.count(GRADIENTS, mine.numel() * mine.element_size())
        return found or []

    def _factors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        weights_n = self._bucket.weights_n.detach()
        for slot in self._bucket.names():
            if slot.endswith(".a_RI"):
                name = slot.removesuffix(".a_RI")
                yield (
                    name,
                    self._bucket.part(weights_n, slot),
                    self._bucket.part(weights_n, f"{name}.b_OR"),
                )
