"""The scores by name. A new score is a module beside this one and a line in `SCORERS`."""

from __future__ import annotations

import importlib

from slora.errors import BadMask
from slora.masks.fisher import FISHER
from slora.masks.gradient import GRADIENT
from slora.masks.magnitude import MAGNITUDE
from slora.masks.snip import SNIP
from slora.masks.strategy import Scorer

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
    """Return the score of that name, or a user's own as `package.module:NAME`. Raise BadMask."""
    if name in SCORERS:
        return SCORERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(SCORERS)
        raise BadMask(
            f"unknown mask strategy {name!r}: use {known}, or your own package.module:NAME"
        )
    try:
        value = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise BadMask(
            f"{name}: there is no module {error.name}. Put it into the working directory, "
            "or install it, on every worker"
        ) from error
    except AttributeError:
        raise BadMask(f"{name}: {module} has no {attribute}") from None
    if not isinstance(value, Scorer):
        kind = type(value).__name__
        raise BadMask(f"{name} is a {kind}: it must be a slora.masks.strategy.Scorer")
    return value
