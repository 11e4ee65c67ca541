"""Cache the tokens of rows, for a worker that reads the same rows again."""

from __future__ import annotations

from typing import Any

from jobs.train.data.tokenization import Encoder, Sample

MAX_CACHED_TOKENS = 4_000_000
"""Tokens that a worker caches, about 300 MB."""


class CachingEncoder:
    """An encoder with a cache, which encoders of equal settings share."""

    def __init__(self, encoder: Encoder, cache: dict[Any, Sample]) -> None:
        self._encoder, self._cache = encoder, cache
        self._cached_tokens = sum(len(sample.input_ids) for sample in cache.values())

    def __call__(self, example: Any, *, where: str) -> Sample:
        sample = self._cache.get(key := repr(example))
        if sample is None:
            sample = self._encoder(example, where=where)
            if self._cached_tokens < MAX_CACHED_TOKENS:
                self._cache[key] = sample
                self._cached_tokens += len(sample.input_ids)
        return sample
