"""The scores by name. A new score is a module beside this one and a line in `SCORERS`.

Another package adds one as an entry point of the group `slora.masks`, whose value is a `Scorer`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from slora.errors import BadMask
from slora.masks.fisher import FISHER
from slora.masks.gradient import GRADIENT
from slora.masks.magnitude import MAGNITUDE
from slora.masks.snip import SNIP
from slora.masks.strategy import Scorer

GROUP = "slora.masks"
"""The group of entry points; a name of our own is never taken from it."""

SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        MAGNITUDE,
        GRADIENT,
        FISHER,
        SNIP,
    )
}


def load_scorer(name: str) -> Scorer:
    """Return the score of that name, or the one of an installed entry point. Raise BadMask."""
    if name in SCORERS:
        return SCORERS[name]
    entry_point = _find_entry_point(name)
    try:
        value = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise BadMask(f"{name}: {entry_point.value} cannot be loaded ({error})") from error
    if not isinstance(value, Scorer):
        kind = type(value).__name__
        raise BadMask(f"{name} is a {kind}: it must be a slora.masks.strategy.Scorer")
    return value


def _find_entry_point(name: str) -> EntryPoint:
    installed = entry_points(group=GROUP)
    matches = tuple(installed.select(name=name))
    if not matches:
        known = ", ".join((*SCORERS, *sorted(installed.names - SCORERS.keys())))
        raise BadMask(
            f"unknown mask strategy {name!r}: use {known}, or install a package with the entry "
            f"point {name!r} in the group {GROUP!r} on every worker"
        )
    return matches[0]
