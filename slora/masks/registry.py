"""The scores by name. A new one is a file beside this one and a line in `SCORERS`."""

from __future__ import annotations

import importlib

from slora.errors import BadMask
from slora.masks.fisher import FISHER
from slora.masks.gradient import GRADIENT
from slora.masks.magnitude import MAGNITUDE
from slora.masks.scorer import Scorer
from slora.masks.snip import SNIP

SCORERS: dict[str, Scorer] = {
    one.name: one
    for one in (
        MAGNITUDE,
        GRADIENT,
        FISHER,
        SNIP,
    )
}


def scorer(name: str) -> Scorer:
    """The score of that name, or a user's own as `package.module:NAME`. Raises BadMask."""
    if name in SCORERS:
        return SCORERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(SCORERS)
        raise BadMask(f"no mask strategy {name!r}: use {known}, or package.module:NAME of your own")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as missing:
        raise BadMask(
            f"{name}: there is no module {missing.name}. Is it in the working directory, or "
            "installed, on every worker?"
        ) from missing
    except AttributeError:
        raise BadMask(f"{name}: {module} has no {attribute}") from None
    if not isinstance(found, Scorer):
        kind = type(found).__name__
        raise BadMask(f"{name} is a {kind}: it has to be a slora.masks.scorer.Scorer")
    return found
