"""The server's step: from what the clients' steps came to, weighted by their rows, to new weights.

n: numbers that are trained. Sums are taken in float64 and in the order of the clients' numbers:
what answers come first changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jobs.federation.averaging.flat_layout import VectorLayout
from jobs.train.engine.local_steps import OUTER_MOMENTUM, OUTER_RATE
from slora.handoff.average import average_low_rank

AveragingMethod = Literal["fedavg", "nesterov", "product"]


@dataclass(frozen=True)
class WeightedUpdate:
    """What one client's steps came to."""

    client: int
    weight: float
    """Its rows."""
    delta_n: Tensor
    """float32: its weights after its steps, less those that it was sent."""


class ServerOptimizer:
    """The server's step in one stage, and the momentum that it keeps from round to round."""

    def __init__(self, method: AveragingMethod, layout: VectorLayout) -> None:
        self._method, self._layout = method, layout
        self.momentum_n = torch.zeros(layout.count) if method == "nesterov" else None

    def step(self, weights_n: Tensor, updates: Sequence[WeightedUpdate]) -> Tensor:
        """The weights that the next round starts from. Nobody's answers leave them as they are."""
        if not updates:
            return weights_n
        updates = sorted(updates, key=lambda update: update.client)
        total_weight = sum(update.weight for update in updates)
        mean_n = torch.zeros(self._layout.count, dtype=torch.float64)
        for update in updates:
            mean_n.add_(update.delta_n.double(), alpha=update.weight / total_weight)
        delta_n = mean_n.float()
        if self.momentum_n is not None:
            self.momentum_n.mul_(OUTER_MOMENTUM).add_(delta_n)
            return weights_n + OUTER_RATE * (delta_n + OUTER_MOMENTUM * self.momentum_n)
        averaged_n = weights_n + delta_n
        if self._method == "product":
            self._average_products(averaged_n, weights_n, updates, total_weight)
        return averaged_n

    def _average_products(
        self,
        averaged_n: Tensor,
        weights_n: Tensor,
        updates: Sequence[WeightedUpdate],
        total_weight: float,
    ) -> None:
        """Replaces the factors in `found_n`: the mean of B A, cut to the rank again."""
        averaged = self._layout.split_by_name(averaged_n)
        client_tensors = [
            self._layout.split_by_name(weights_n + update.delta_n) for update in updates
        ]
        # mean_product takes the plain mean: a client's weight goes into its B.
        shares = [update.weight / total_weight * len(updates) for update in updates]
        for a, b in self._iterate_factor_names():
            pairs = [
                (update[a], update[b] * share)
                for update, share in zip(client_tensors, shares, strict=True)
            ]
            product = average_low_rank(pairs)
            averaged[a].copy_(product.a_RI)
            averaged[b].copy_(product.b_OR)

    def _iterate_factor_names(self) -> Iterator[tuple[str, str]]:
        """The names of the layers' factors; none in a stage that has none."""
        for name in self._layout.names:
            if name.endswith(".a_RI"):
                yield name, name.removesuffix(".a_RI") + ".b_OR"
