"""Values that the spec knows and the engine does not yet: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.errors import Fault

BUILT: dict[str, tuple[Any, ...]] = {
    "train.stop.tokens": (None,),
    "train.stop.metric": ("eval_loss",),
    "train.stop.target": (None,),
    "train.stop.patience": (None,),
}
"""For each key that is not whole yet, the values that are."""


def not_available_yet(value_of: Callable[[str], Any]) -> list[Fault]:
    """The values that have no engine yet, each with those that do; None means not given."""
    return [
        _fault(key, value, built)
        for key, built in BUILT.items()
        # A list or a section there is wrong in itself, which the spec's own check says.
        if isinstance(value := value_of(key), str | int | float) and value not in built
    ]


def _fault(key: str, value: Any, built: tuple[Any, ...]) -> Fault:
    choices = " or ".join("null" if choice is None else str(choice) for choice in built)
    return Fault(key, f"{value} is not available yet", f"Use {choices}.")
