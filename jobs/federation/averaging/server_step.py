"""Average the updates of a round's clients, weighted by their rows, into new weights.

n: numbers that are trained. Sums are taken in float64 and in the order of the clients' numbers, so
the order in which updates arrive changes no bit.
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
    """One client's update and its weight in the mean."""

    client: int
    weight: float
    """The number of its rows."""
    delta_n: Tensor
    """float32: its weights after its steps minus those that it was sent."""


class ServerOptimizer:
    """The server's step in one stage, with the momentum that it keeps between rounds."""

    def __init__(self, method: AveragingMethod, layout: VectorLayout) -> None:
        self._method, self._layout = method, layout
        self.momentum_n = torch.zeros(layout.count) if method == "nesterov" else None

    def restore_momentum(self, momentum_n: Tensor) -> None:
        """Continue with the momentum of a checkpoint, if this method has any."""
        if self.momentum_n is not None:
            self.momentum_n = momentum_n

    def step(self, weights_n: Tensor, updates: Sequence[WeightedUpdate]) -> Tensor:
        """Return the weights of the next round; the same weights if there are no updates."""
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
        """Replace the factors in `averaged_n` by those of the mean of B A, cut to the rank."""
        averaged = self._layout.split_by_name(averaged_n)
        client_tensors = [
            self._layout.split_by_name(weights_n + update.delta_n) for update in updates
        ]
        # mean_product takes the unweighted mean: a client's weight goes into its B.
        shares = [update.weight / total_weight * len(updates) for update in updates]
        for a, b in self._iterate_factor_names():
            pairs = [
                (tensors[a], tensors[b] * share)
                for tensors, share in zip(client_tensors, shares, strict=True)
            ]
            product = average_low_rank(pairs)
            averaged[a].copy_(product.a_RI)
            averaged[b].copy_(product.b_OR)

    def _iterate_factor_names(self) -> Iterator[tuple[str, str]]:
        """Yield the names of each layer's two factors; nothing in a stage without factors."""
        for name in self._layout.names:
            if name.endswith(".a_RI"):
                yield name, name.removesuffix(".a_RI") + ".b_OR"
