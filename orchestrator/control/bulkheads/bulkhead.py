"""The bulkhead of one loop: the guard around its items, and what it is looking at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.control.bulkheads.item_guard import ItemGuard
from orchestrator.control.bulkheads.look_keeper import PROCESS_TIMEOUT_S, LookKeeper
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.registry.database import Database


@dataclass(frozen=True)
class Bulkhead:
    """The guard and the looks of one loop."""

    guard: ItemGuard
    looks: LookKeeper


def make_bulkhead(
    database: Database,
    loop: str,
    *,
    metrics: ServiceMetrics | None = None,
    holder: str = "process",
    timeout_s: float = PROCESS_TIMEOUT_S,
    on_item: Callable[[], None] = lambda: None,
) -> Bulkhead:
    """Make the bulkhead of a loop. `on_item` is called before each item, as a sign of progress."""
    guard = ItemGuard(metrics or ServiceMetrics(), on_item=on_item)
    return Bulkhead(guard, LookKeeper(database, loop, holder, timeout_s=timeout_s))
