"""Select layers by name patterns, and count the entries of a density. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from slora.errors import BadMask, BadTargets


def select_layers(names: Sequence[str], targets: str | Sequence[str]) -> list[str]:
    """Return the names that `all-linear` or the patterns match. Raise BadTargets."""
    if targets == "all-linear":
        if not names:
            raise BadTargets("all-linear", ())
        return list(names)
    patterns = [targets] if isinstance(targets, str) else list(targets)
    for pattern in patterns:
        if not any(match_pattern(name, pattern) for name in names):
            raise BadTargets(pattern, list_layer_kinds(names))
    return [name for name in names if any(match_pattern(name, pattern) for pattern in patterns)]


def match_pattern(name: str, pattern: str) -> bool:
    """Match a pattern against the last parts of a name (`q_proj`, `mlp.up_proj`) or as a glob."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def list_layer_kinds(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct endings of the names after the layer number, to keep a message short."""
    return tuple(dict.fromkeys(_drop_layer_number(name) for name in names))


def count_entries(shape: tuple[int, int], density: float) -> int:
    """Return the entries of a mask of `density`: the nearest integer, and at least one."""
    size = shape[0] * shape[1]
    if not 0 < density <= 1 or size == 0:
        raise BadMask(f"density {density} of a {shape} matrix: use more than 0 and at most 1")
    return max(1, round(size * density))


def _drop_layer_number(name: str) -> str:
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts) or name
