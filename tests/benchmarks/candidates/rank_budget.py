"""Spread a budget of numbers over the ranks of layers by the energy that each rank would hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def allocate_ranks(
    energies: Mapping[str, Sequence[float]], costs: Mapping[str, int], budget: int
) -> dict[str, int]:
    """Return a rank of at least 1 for each layer, the most energy for `budget` numbers (greedy).

    `energies`: those of a layer's directions, descending; `costs`: the numbers of one rank of it.
    """
    ranks, left = dict.fromkeys(energies, 1), budget - sum(costs[name] for name in energies)
    steps = sorted(
        (
            (energy / costs[name], name)
            for name, layer in energies.items()
            for energy in layer[1:]
        ),
        key=lambda step: (-step[0], step[1]),
    )  # fmt: skip
    full = set[str]()
    for _, name in steps:
        # A layer's later ranks hold less than the one that did not fit.
        if name not in full and costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
        else:
            full.add(name)
    return ranks
