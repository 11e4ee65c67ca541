"""The canary file of a run: prompts and held-out rows as tokens, with the trained model's loss.

Whoever serves the adapter later sends them to the server, and needs neither the base, the tokenizer
nor the data for it. The file lies beside the run's spec and is untrusted until it is parsed.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, ValidationError

from jobs.errors import StoreError
from jobs.spec.strict_model import StrictModel

CANARY_FILE = "canary.json"
MAX_ROWS, MAX_ROW_TOKENS = 16, 8192

Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[tuple[Token, ...], Field(min_length=1, max_length=MAX_ROW_TOKENS)]


class SampleTokens(StrictModel):
    """A sample prompt as the model reads it."""

    tokens: Tokens
    has_answer: bool
    """Whether the trained model answered with any text."""


class HeldOutRow(StrictModel):
    """A held-out row as the model reads it."""

    tokens: Tokens
    targets: Annotated[tuple[Token, ...], Field(min_length=1, max_length=MAX_ROW_TOKENS)]
    """Indices of the tokens that the loss is over; each is predicted from those before it."""


class CanaryFile(StrictModel):
    """What a server is asked before an adapter answers."""

    format: Literal[1] = 1
    is_chat: bool
    """Whether the model's chat template rendered the rows."""
    prompts: Annotated[tuple[SampleTokens, ...], Field(max_length=MAX_ROWS)] = ()
    rows: Annotated[tuple[HeldOutRow, ...], Field(max_length=MAX_ROWS)] = ()
    loss: FiniteFloat | None = None
    """Mean loss per target of the trained model on `rows`; None without rows."""


def parse_canary(data: bytes, key: str) -> CanaryFile:
    """Return the file. Raise StoreError if it is none."""
    try:
        return CanaryFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        problem = f"{key}: {where[:100]!a}: {first['msg'][:200]!a}"
        raise StoreError(f"{problem}. Delete that object, or train the adapter again.") from error
