"""Errors that the method raises.

SloraError
├── BadMask           a density or a shape for which no mask can be drawn
├── BadRank           a rank that does not fit a matrix
├── BadTargets        a name pattern that matches no linear layer
├── UnsupportedLayer  a target that is not a linear layer
└── BadAdapter        a file that is not a valid adapter
"""

from __future__ import annotations


class SloraError(ValueError):
    """Base class of all errors that the method raises."""


class BadMask(SloraError):
    """Raised when no mask of this density exists for the matrix."""


class BadRank(SloraError):
    """Raised when the rank does not fit the matrix."""

    def __init__(self, rank: int, shape: tuple[int, ...], name: str = "") -> None:
        super().__init__(rank, shape, name)
        self.rank, self.shape, self.name = rank, shape, name

    def __str__(self) -> str:
        owner = f"{self.name}, " if self.name else ""
        max_rank = min(self.shape)
        return f"rank {self.rank} does not fit {owner}a {self.shape} matrix: use 1 to {max_rank}"


class BadTargets(SloraError):
    """Raised when a pattern matches no layer that can be trained."""

    def __init__(self, pattern: str, layer_kinds: tuple[str, ...]) -> None:
        super().__init__(pattern, layer_kinds)
        self.pattern, self.layer_kinds = pattern, layer_kinds

    def __str__(self) -> str:
        names = ", ".join(self.layer_kinds) or "no linear layers"
        return f"the pattern {self.pattern!r} matches no linear layer. The model has: {names}"


class UnsupportedLayer(SloraError):
    """Raised when a target is not a layer that can be adapted."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name, kind)
        self.name, self.kind = name, kind

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.kind}) can't be adapted: only linear layers, Conv1D and fused "
            "experts can. Remove it from the targets"
        )


class BadAdapter(SloraError):
    """Raised when a folder is not a valid adapter, or not an adapter of this model."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
