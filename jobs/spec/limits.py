"""The bounds of every number in a spec, each of them on both sides.

An upper bound is far above anything that makes sense; it turns a slip of the keyboard, or a hostile
spec, into an error instead of an overflow or a run without end.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MAX_STEPS = 10**9
MAX_COUNT = 10**6
MAX_WORKERS = 10**5
MAX_TOKENS = 10**15
"""Below 2**53, so that JSON readers that only know floats keep it exact."""
MAX_REAL = 1e15

Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
"""Steps, rounds, and the intervals between them."""
Rounds = Annotated[int, Field(ge=0, le=MAX_STEPS)]
"""Rounds of a stage, which may have none."""
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Retries = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Workers = Annotated[int, Field(ge=1, le=MAX_WORKERS)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
SequenceLength = Annotated[int, Field(ge=8, le=2**24)]
BatchSize = Annotated[int, Field(ge=1, le=10**7)]
TimeoutSeconds = Annotated[int, Field(ge=10, le=30 * 24 * 3600)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
SearchSeed = Annotated[int, Field(ge=0, lt=2**31)]
"""The seeds that Optuna and NumPy's legacy generator accept."""
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]

Positive = Annotated[float, Field(gt=0, le=MAX_REAL)]
NonNegative = Annotated[float, Field(ge=0, le=MAX_REAL)]
Real = Annotated[float, Field(ge=-MAX_REAL, le=MAX_REAL)]
Share = Annotated[float, Field(ge=0, le=1)]
ProperShare = Annotated[float, Field(ge=0, lt=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
