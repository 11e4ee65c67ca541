"""The bounds of every number in a spec, a schedule and a request, each of them on both sides.

An upper bound is far above anything that makes sense; it turns a slip of the keyboard, or a hostile
spec, into an error instead of an overflow or a run without end. Products of numbers have bounds of
their own (jobs.spec.checks.products), and none of them exceeds the type of its database column.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

NAME_PATTERN = r"^[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*$"
"""Names become folders and URLs: no separators, no `..`, no control characters."""
MAX_STEPS = 10**9
MAX_COUNT = 10**6
MAX_WORKERS = 10**5
MAX_TOKENS = 10**15
"""Below 2**53, so that JSON readers that only know floats keep it exact."""
MAX_REAL = 1e15

MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1
"""The largest values of the database's types Integer and BigInteger."""
MAX_TOTAL_WORKERS = 10**6
"""Workers of all concurrent trials of a run together."""
MAX_CPUS = 10**7
MAX_GPUS = 10**6
MAX_BYTES = 10**18
"""Memory of all workers of a run together."""
MAX_PRIORITY = 1000
MAX_JITTER_S = 86400.0
MAX_VERSION = 10**9 - 1

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
Seed = Annotated[int, Field(ge=0, le=MAX_INT64)]
SearchSeed = Annotated[int, Field(ge=0, le=MAX_INT32)]
"""The seeds that Optuna and NumPy's legacy generator accept."""
Integer = Annotated[int, Field(ge=-MAX_INT64 - 1, le=MAX_INT64)]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
JitterSeconds = Annotated[float, Field(ge=0, le=MAX_JITTER_S)]
Revision = Annotated[int, Field(ge=1, le=MAX_INT64)]
VersionNumber = Annotated[int, Field(ge=1, le=MAX_VERSION)]
SmallCount = Annotated[int, Field(ge=0, le=MAX_INT32)]
"""A count in a column of type Integer."""
LargeCount = Annotated[int, Field(ge=0, le=MAX_INT64)]
"""A count in a column of type BigInteger."""

Positive = Annotated[float, Field(gt=0, le=MAX_REAL)]
NonNegative = Annotated[float, Field(ge=0, le=MAX_REAL)]
Real = Annotated[float, Field(ge=-MAX_REAL, le=MAX_REAL)]
Share = Annotated[float, Field(ge=0, le=1)]
ProperShare = Annotated[float, Field(ge=0, lt=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
