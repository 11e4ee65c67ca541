"""What is right for a file of rows: small functions that look at what the product makes of it.

Each returns None, or in one line what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

END = "<|im_end|>"
ChatTurn = tuple[str, str]


@dataclass
class RowsReading:
    """What came of a spec: refused with faults, or a plan and the rows as the model learns them."""

    refusal: str | None = None
    """All faults, a line each; None if the plan accepts."""
    late_refusal: str | None = None
    """An error after the plan had accepted."""
    plan: str = ""
    """Everything that the plan says, in one text."""
    contexts: list[str] = field(default_factory=list)
    """The tokens of each row as text, those that are not learnt too."""
    learned: list[str] = field(default_factory=list)
    """The tokens of each row that are learnt, as text."""
    labels: tuple[str, ...] = ()
    """A classifier's labels."""


Expectation = Callable[[RowsReading], str | None]


def learn(*answers: str) -> Expectation:
    """Expect these texts to be learnt, each by one row, in any order; repeated rows count once."""

    def check(reading: RowsReading) -> str | None:
        if problem := _get_refusal(reading):
            return problem
        if set(reading.learned) != set(answers):
            return f"learnt {sorted(set(reading.learned))[:4]}, not {sorted(answers)[:4]}"
        return None

    return check


def learn_all_of(*parts: str) -> Expectation:
    """Expect each of these texts inside what some row learns."""
    return _expect_parts("learned", "what is learnt", parts)


def show(*parts: str) -> Expectation:
    """Expect each of these texts in what the model is shown of some row."""
    return _expect_parts("contexts", "what the model is shown", parts)


def learn_nothing_of(*parts: str) -> Expectation:
    """Expect none of these texts in what is learnt."""

    def check(reading: RowsReading) -> str | None:
        if problem := _get_refusal(reading):
            return problem
        wrong = [part for part in parts if any(part in text for text in reading.learned)]
        return f"learnt: {wrong[0]!r}" if wrong else None

    return check


def show_as(*texts: str) -> Expectation:
    """Expect the rows' tokens to be exactly these texts, special tokens included."""

    def check(reading: RowsReading) -> str | None:
        if problem := _get_refusal(reading):
            return problem
        if set(reading.contexts) != set(texts):
            return f"the model is shown {sorted(set(reading.contexts))[:3]}, not {list(texts)[:3]}"
        return None

    return check


def classify(*labels: str, rows: int | None = None) -> Expectation:
    """Expect these labels, and so many rows."""

    def check(reading: RowsReading) -> str | None:
        if problem := _get_refusal(reading):
            return problem
        if set(reading.labels) != set(labels):
            return f"labels {list(reading.labels)}, not {list(labels)}"
        if rows is not None and len(reading.contexts) != rows:
            return f"{len(reading.contexts)} rows, not {rows}"
        return None

    return check


def count_rows(number: int) -> Expectation:
    """Expect so many rows with a target."""

    def check(reading: RowsReading) -> str | None:
        problem = _get_refusal(reading)
        if problem is None and len(reading.learned) != number:
            problem = f"{len(reading.learned)} rows are learnt, not {number}"
        return problem

    return check


def note(*words: str) -> Expectation:
    """Expect the plan to say something with each of these words."""

    def check(reading: RowsReading) -> str | None:
        if problem := _get_refusal(reading):
            return problem
        absent = [word for word in words if word.lower() not in reading.plan.lower()]
        return f"the plan does not say {absent[0]!r}" if absent else None

    return check


def refuse(*words: str) -> Expectation:
    """Expect a refusal by the plan whose lines have each of these words: file:line, the reason."""

    def check(reading: RowsReading) -> str | None:
        if reading.late_refusal:
            return f"refused after the plan: {reading.late_refusal}"
        if reading.refusal is None:
            return f"accepted: learnt {sorted(set(reading.learned))[:2]}"
        absent = [word for word in words if word.lower() not in reading.refusal.lower()]
        return f"the refusal does not say {absent[0]!r}: {reading.refusal}" if absent else None

    return check


def any_of(*expectations: Expectation) -> Expectation:
    """Expect one of them to hold."""

    def check(reading: RowsReading) -> str | None:
        problems = [expectation(reading) for expectation in expectations]
        return None if None in problems else problems[0]

    return check


def all_of(*expectations: Expectation) -> Expectation:
    """Expect all of them to hold."""

    def check(reading: RowsReading) -> str | None:
        return next((problem for item in expectations if (problem := item(reading))), None)

    return check


def _expect_parts(attribute: str, what: str, parts: Sequence[str]) -> Expectation:
    def check(reading: RowsReading) -> str | None:
        if problem := _get_refusal(reading):
            return problem
        texts: list[str] = getattr(reading, attribute)
        absent = [part for part in parts if not any(part in text for text in texts)]
        return f"{absent[0]!r} is not in {what}: {texts[:1]}" if absent else None

    return check


def _get_refusal(reading: RowsReading) -> str | None:
    if reading.late_refusal:
        return f"refused after the plan: {reading.late_refusal}"
    return f"refused: {reading.refusal}" if reading.refusal else None
