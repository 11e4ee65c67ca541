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

from jobs.federate.layout import Layout
from jobs.local_steps import OUTER_MOMENTUM, OUTER_RATE
from slora.average import mean_product

Average = Literal["fedavg", "nesterov", "product"]


@dataclass(frozen=True)
class Told:
    """What one client's steps came to."""

    client: int
    weight: float
    """Its rows."""
    delta_n: Tensor
    """float32: its weights after its steps, less those that it was sent."""


class Averaging:
    """The server's step in one stage, and the momentum that it keeps from round to round."""

    def __init__(self, how: Average, layout: Layout) -> None:
        self._how, self._layout = how, layout
        self.momentum_n = torch.zeros(layout.count) if how == "nesterov" else None

    def step(self, weights_n: Tensor, told: Sequence[Told]) -> Tensor:
        """The weights that the next round starts from. Nobody's answers leave them as they are."""
        if not told:
            return weights_n
        told = sorted(told, key=lambda one: one.client)
        whole = sum(one.weight for one in told)
        mean_n = torch.zeros(self._layout.count, dtype=torch.float64)
        for one in told:
            mean_n.add_(one.delta_n.double(), alpha=one.weight / whole)
        delta_n = mean_n.float()
        if self.momentum_n is not None:
            self.momentum_n.mul_(OUTER_MOMENTUM).add_(delta_n)
            return weights_n + OUTER_RATE * (delta_n + OUTER_MOMENTUM * self.momentum_n)
        found = weights_n + delta_n
        if self._how == "product":
            self._average_products(found, weights_n, told, whole)
        return found

    def _average_products(
        self, found_n: Tensor, weights_n: Tensor, told: Sequence[Told], whole: float
    ) -> None:
        """Replaces the factors in `found_n`: the mean of B A, cut to the rank again."""
        found = self._layout.named(found_n)
        each = [self._layout.named(weights_n + one.delta_n) for one in told]
        # mean_product takes the plain mean: a client's weight goes into its B.
        shares = [one.weight / whole * len(told) for one in told]
        for a, b in self._factors():
            pairs = [(one[a], one[b] * share) for one, share in zip(each, shares, strict=True)]
            made = mean_product(pairs)
            found[a].copy_(made.a_RI)
            found[b].copy_(made.b_OR)

    def _factors(self) -> Iterator[tuple[str, str]]:
        """The names of the layers' factors; none in a stage that has none."""
        for name in self._layout.names:
            if name.endswith(".a_RI"):
                yield name, name.removesuffix(".a_RI") + ".b_OR"
