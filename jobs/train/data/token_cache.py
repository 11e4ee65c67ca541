"""An encoder that tokenises no row twice, for a worker that goes through the same rows again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.train.data.tokenization import Sample

MAX_CACHED_TOKENS = 4_000_000
"""That a worker keeps of rows it has tokenised, about 300 MB."""


class CachingEncoder:
    """`known` is shared by all encoders that tokenise alike."""

    def __init__(self, encode: Callable[..., Sample], cache: dict[Any, Sample]) -> None:
        self._encode, self._cache = encode, cache
        self._cached_tokens = sum(len(sample.input_ids) for sample in cache.values())

    def __call__(self, example: Any, *, where: str) -> Sample:
        sample = self._cache.get(example)
        if sample is None:
            sample = self._encode(example, where=where)
            if self._cached_tokens < MAX_CACHED_TOKENS:
                self._cache[example] = sample
                self._cached_tokens += len(sample.input_ids)
        return sample
