"""What the method refuses.

SloraError
├── BadMask         a density or a shape no mask can be drawn for
├── BadRank         a rank that a matrix has not
├── BadTargets      a name pattern that matches no linear layer
├── BadKind         a target that is another kind of module
└── BadAdapter      an adapter's file that is not what it says
"""

from __future__ import annotations


class SloraError(ValueError):
    """The base of the method's refusals."""


class BadMask(SloraError):
    """No mask of this density exists for this matrix."""


class BadRank(SloraError):
    """The rank does not fit the matrix."""

    def __init__(self, rank: int, shape: tuple[int, ...], name: str = "") -> None:
        super().__init__(rank, shape, name)
        self.rank, self.shape, self.name = rank, shape, name

    def __str__(self) -> str:
        owner = f"{self.name}, " if self.name else ""
        max_rank = min(self.shape)
        return f"rank {self.rank} does not fit {owner}a {self.shape} matrix: use 1..{max_rank}"


class BadTargets(SloraError):
    """A pattern matches nothing that can be trained."""

    def __init__(self, pattern: str, layer_kinds: tuple[str, ...]) -> None:
        super().__init__(pattern, layer_kinds)
        self.pattern, self.layer_kinds = pattern, layer_kinds

    def __str__(self) -> str:
        names = ", ".join(self.layer_kinds) or "no linear layer at all"
        return f"the pattern {self.pattern!r} matches no linear layer: there is {names}"


class UnsupportedLayer(SloraError):
    """What is named, or would be left out, is no layer that the method knows."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name, kind)
        self.name, self.kind = name, kind

    def __str__(self) -> str:
        return (
            f"{self.name} is of the kind {self.kind}: only linear layers and Conv1D can be "
            "adapted. Name the targets that are, by patterns"
        )


class BadAdapter(SloraError):
    """A folder that claims to be an adapter and is not, or not one of this model."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
