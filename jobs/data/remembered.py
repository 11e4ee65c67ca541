"""An encoder that tokenises no row twice, for a worker that goes through the same rows again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.data.tokens import Sample

MOST_TOKENS = 4_000_000
"""That a worker keeps of rows it has tokenised, about 300 MB."""


class Remembered:
    """`known` is shared by all encoders that tokenise alike."""

    def __init__(self, encode: Callable[..., Sample], known: dict[Any, Sample]) -> None:
        self._encode, self._known = encode, known
        self._tokens = sum(len(sample.input_ids) for sample in known.values())

    def __call__(self, example: Any, *, where: str) -> Sample:
        found = self._known.get(example)
        if found is None:
            found = self._encode(example, where=where)
            if self._tokens < MOST_TOKENS:
                self._known[example] = found
                self._tokens += len(found.input_ids)
        return found
