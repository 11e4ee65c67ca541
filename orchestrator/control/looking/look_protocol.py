"""The request to a child process that looks at files, and its answer: JSON, parsed strictly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.errors import Fault
from jobs.places.places import Places
from jobs.spec.strict_model import StrictModel

MAX_FAULTS = 50
MAX_TEXT = 2000
"""Characters of a part of a fault."""

Question = Literal["validate_run", "fingerprint_data"]
ShortText = Annotated[str, Field(max_length=MAX_TEXT)]


class LookLimits(StrictModel):
    """What one look may use."""

    wall_s: float = Field(default=30.0, gt=0, le=3600)
    cpu_s: int = Field(default=45, ge=1, le=3600)
    """More than it can use in `wall_s`, so that a process that nobody ends any more ends itself,
    and the one that builds models does not mistake this limit for a fault of the model."""
    memory_bytes: int = Field(default=5 << 30, ge=1 << 20)
    """Of each process. torch needs 0.5 GiB, and what builds a model limits itself to 4 GiB more."""
    read_bytes: int = Field(default=64 << 20, ge=1)
    """Of a data set, as stored and decompressed."""
    copy_bytes: int = Field(default=256 << 20, ge=1)
    """Of the objects of an address in a bucket."""
    open_files: int = Field(default=256, ge=16)


class Account(StrictModel):
    """The user and the group of a process."""

    user: int = Field(ge=1)
    group: int = Field(ge=1)


class LookRequest(StrictModel):
    """A question about the files of a project."""

    question: Question
    spec: dict[str, Any] = Field(default_factory=dict)
    """Of validate_run: the fine-tune alone."""
    location: str = ""
    """Of fingerprint_data: data.train."""
    places: Places | None = None
    """What may be read; None: anything."""
    limits: LookLimits = LookLimits()
    account: Account | None = None
    """Who the process becomes before it opens a file; None: who it is."""


class FaultText(StrictModel):
    """A fault, with texts of limited length."""

    key: ShortText
    problem: ShortText
    remedy: ShortText = ""


class LookAnswer(StrictModel):
    """The answer of a child: at most one of the three reasons."""

    fingerprint: str | None = Field(default=None, max_length=64)
    faults: tuple[FaultText, ...] = Field(default=(), max_length=MAX_FAULTS + 1, strict=False)
    unchecked: ShortText = ""
    """Why nothing is known, although the files may be right."""
    store_error: ShortText = ""
    """Why the store does not answer: the same look may succeed later."""


@dataclass(frozen=True)
class LookResult:
    """What is known after a look. See LookAnswer."""

    fingerprint: str | None = None
    faults: tuple[Fault, ...] = ()
    unchecked: str = ""
    store_error: str = ""


def parse_answer(text: bytes) -> LookResult:
    """Parse the answer of a child. Raise ValueError."""
    answer = LookAnswer.model_validate_json(text)
    return LookResult(
        answer.fingerprint,
        tuple(Fault(fault.key, fault.problem, fault.remedy) for fault in answer.faults),
        answer.unchecked,
        answer.store_error,
    )


def make_fault_texts(faults: tuple[Fault, ...]) -> tuple[FaultText, ...]:
    """Return the first faults, cut to the length that an answer may have."""
    texts = tuple(
        FaultText(
            key=fault.key[:MAX_TEXT],
            problem=fault.problem[:MAX_TEXT],
            remedy=fault.remedy[:MAX_TEXT],
        )
        for fault in faults[:MAX_FAULTS]
    )
    omitted = len(faults) - MAX_FAULTS
    if omitted <= 0:
        return texts
    problem = f"{omitted:,} more errors are not shown"
    return (*texts, FaultText(key="spec", problem=problem, remedy="Fix these first."))
