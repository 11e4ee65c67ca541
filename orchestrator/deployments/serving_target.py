"""The interface of an inference server that adapters are deployed to, and its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore

Prompt = str | Sequence[int]
"""A text, or the ids of its tokens."""


@dataclass(frozen=True)
class TargetState:
    """What a server holds, and what it can hold."""

    base_digest: str | None
    """Digest of its base model, or None if neither it nor the configuration tells."""
    forms: frozenset[str]
    """Forms of adapters that it serves: lora, sparse."""
    max_rank: int | None
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Form of each loaded version, by its versioned name."""
    names: Mapping[str, str] | None = None
    """Versioned name by public name; None for a server without public names, whose clients ask for
    a versioned name."""
    model_prefix: str = ""
    """What stands before a name in the `model` of a request."""
    problem: str | None = None
    """Why the server refuses all requests, after a switch that failed half-way."""


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt."""

    text: str
    seconds: float


class ServingTarget(Protocol):
    """A server. Every change can be repeated.

    All methods raise TargetUnreachable, and those that change something TargetRefused.
    """

    endpoint: str

    def read_state(self) -> TargetState:
        """Return what the server holds."""

    def load(self, name: str, store: ObjectStore, manifest: Manifest) -> None:
        """Load a version under its versioned name, from a copy that the server can read."""

    def set_name(self, name: str, version: str | None) -> None:
        """Make a public name answer with a loaded version from the next request on, or not at all.

        Requests in flight end with the version that they began with.
        """

    def unload(self, name: str) -> None:
        """Unload a version that no public name answers with, and delete its copy."""

    def ask(self, model: str, prompt: Prompt, *, max_tokens: int, is_chat: bool = False) -> Answer:
        """Return the greedy answer of a model to a prompt. Raise TargetRefused."""

    def score(self, model: str, tokens: Sequence[int], targets: Sequence[int]) -> list[float]:
        """Return the log-probability of the tokens at these indices, after those before them.

        Raise TargetRefused.
        """

    def close(self) -> None:
        """Close the connections."""
