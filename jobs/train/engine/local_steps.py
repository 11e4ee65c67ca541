"""Local steps: workers step alone, then agree on one set of weights.

n: trainable numbers. After some steps of its own, each worker has moved from the common weights
(the anchor) by a delta. The mean of the deltas is exact for sparse values, which enter the model
one by one. For LoRA factors it is not: the mean of B times the mean of A is not the mean of B A,
and `average: product` takes the latter, truncated to the rank again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jobs.train.comm.collectives import GRADIENTS, WorkerContext
from jobs.train.engine.bucket import Bucket
from slora.handoff.average import average_low_rank

OUTER_RATE, OUTER_MOMENTUM = 0.7, 0.9
"""DiLoCo's outer Nesterov step (Douillard et al., 2023, arXiv 2311.08105)."""


class LocalSteps:
    """The weights that all workers last agreed on, and the outer step from there."""

    def __init__(self, bucket: Bucket, context: WorkerContext, outer: str, average: str) -> None:
        self._bucket, self._context, self._averages_products = bucket, context, average == "product"
        self._anchor_n = bucket.weights_n.detach().clone()
        self.momentum_n = torch.zeros_like(self._anchor_n) if outer == "nesterov" else None

    def set_anchor(self) -> None:
        """Take the present weights as the common ones."""
        self._anchor_n.copy_(self._bucket.weights_n.detach())

    def write_delta(self, delta_n: Tensor) -> tuple[float, float]:
        """Write this worker's share of the mean delta, to be summed over all workers.

        Return, for the layers that this worker averages, the energy that their rank loses of the
        mean products, and the products' energy: squared Frobenius norms.
        """
        torch.sub(self._bucket.weights_n.detach(), self._anchor_n, out=delta_n)
        delta_n.div_(self._context.world_size)
        return self._average_products(delta_n) if self._averages_products else (0.0, 0.0)

    def apply_delta(self, delta_n: Tensor) -> None:
        """Take the outer step along the mean delta; every worker continues from there."""
        if self.momentum_n is None:
            self._anchor_n.add_(delta_n)
        else:
            self.momentum_n.mul_(OUTER_MOMENTUM).add_(delta_n)
            self._anchor_n.add_(delta_n + OUTER_MOMENTUM * self.momentum_n, alpha=OUTER_RATE)
        with torch.no_grad():
            self._bucket.weights_n.copy_(self._anchor_n)

    def _average_products(self, delta_n: Tensor) -> tuple[float, float]:
        """Replace the factors' deltas: the worker that owns a layer averages its products and sends
        them.
        """
        lost_energy = energy = 0.0
        for index, (name, a, b) in enumerate(self._iterate_factors()):
            owner = index % self._context.world_size
            own_factors = torch.cat((a.flatten(), b.flatten()))
            gathered = self._gather_factors(own_factors, owner)
            for slot in (f"{name}.a_RI", f"{name}.b_OR"):
                self._bucket.get_part(delta_n, slot).zero_()
            if self._context.rank != owner:
                continue
            sizes = [a.numel(), b.numel()]
            splits = (torch.split(vector, sizes) for vector in gathered)
            pairs = [(x.view_as(a), y.view_as(b)) for x, y in splits]
            mean = average_low_rank(pairs)
            for slot, tensor in ((f"{name}.a_RI", mean.a_RI), (f"{name}.b_OR", mean.b_OR)):
                anchor = self._bucket.get_part(self._anchor_n, slot)
                self._bucket.get_part(delta_n, slot).copy_(tensor - anchor)
            lost_energy, energy = lost_energy + mean.lost_energy, energy + mean.energy
        return lost_energy, energy

    def _gather_factors(self, own_factors: Tensor, owner: int) -> list[Tensor]:
        size = self._context.world_size
        buffers = (
            [torch.empty_like(own_factors) for _ in range(size)]
            if self._context.rank == owner
            else None
        )
        torch.distributed.gather(own_factors, buffers, dst=owner)
        if self._context.rank != owner:
            self._context.collectives.count_traffic(
                GRADIENTS, own_factors.numel() * own_factors.element_size()
            )
        return buffers or []

    def _iterate_factors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        weights_n = self._bucket.weights_n.detach()
        for slot in self._bucket.list_names():
            if slot.endswith(".a_RI"):
                name = slot.removesuffix(".a_RI")
                yield (
                    name,
                    self._bucket.get_part(weights_n, slot),
                    self._bucket.get_part(weights_n, f"{name}.b_OR"),
                )
