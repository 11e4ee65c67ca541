"""The mask strategies of a spec that an installed package provides: names of entry points.

A service names those that its operator allows in SLORA_MASKS for each job that it starts; without
it all are allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping

from pydantic import TypeAdapter, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.schema import SCORES, STRUCTURES, RunSpec

MASK_GROUP = "slora.masks"
"""The group of the entry points."""
ALLOWED_MASKS = "SLORA_MASKS"
"""Variable with the allowed entry points, as a JSON array."""
BUILT_IN: Mapping[str, frozenset[str]] = {
    "method.mask": frozenset({*SCORES, *STRUCTURES}),
    "method.score": frozenset(SCORES),
}
"""The strategies of each key that slora has itself."""

_NAMES = TypeAdapter(tuple[str, ...])


def list_installed_strategies(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """Yield key and name of each strategy that is not built in, those of a search's trials too."""
    for key, built_in in BUILT_IN.items():
        strategy = getattr(spec.method, key.partition(".")[2])
        if strategy not in built_in:
            yield key, strategy
        domain = spec.search.space.get(key) if spec.search is not None else None
        for value in (domain.choice or domain.grid or ()) if domain is not None else ():
            if isinstance(value, str) and value not in built_in:
                yield f"search.space.{key}", value


def find_refused_strategies(spec: RunSpec, allowed: Collection[str]) -> Iterator[Fault]:
    """Yield a fault for each installed strategy that is not allowed."""
    for key, strategy in list_installed_strategies(spec):
        if strategy not in allowed:
            problem = f"{strategy[:100]!a} is not a mask strategy that this service allows"
            names = ", ".join((*SCORES, *STRUCTURES, *sorted(allowed)))
            yield Fault(key, problem, f"Use {names}; an operator allows others.")


def make_mask_environment(allowed: Collection[str] | None) -> dict[str, str]:
    """Return the variables that allow a job these installed strategies; None allows all."""
    return {} if allowed is None else {ALLOWED_MASKS: json.dumps(sorted(allowed))}


def get_allowed_masks(environment: Mapping[str, str] = os.environ) -> tuple[str, ...] | None:
    """Return the installed strategies that this process may load; None if it may load all.

    Raise InputError if SLORA_MASKS cannot be read.
    """
    text = environment.get(ALLOWED_MASKS)
    if text is None:
        return None
    try:
        return _NAMES.validate_json(text)
    except ValidationError:
        remedy = "Only the service sets it: do not set it yourself."
        raise InputError([Fault(ALLOWED_MASKS, "not a JSON array of names", remedy)]) from None
