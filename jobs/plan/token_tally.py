"""The tally of a data set's tokens: rows, targets, and what was cut or dropped. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError

SEAL = "tally.json"
"""The file of a table of tokens that is written last."""
WARN_DROPPED = 0.05
"""Share of rows without any effect above which the plan warns."""
CUT_OFF, UNWEIGHTED, BAD = "answer cut off", "nothing to learn", "bad row"
"""The reasons why a row is dropped."""
SKIPPED = "a bad row is skipped: "
"""The start of the note on a row that is skipped."""


@dataclass(frozen=True)
class TokenTally:
    """The counts of one data set."""

    rows: int
    samples: int
    """Rows with something to learn, and the pieces of long texts."""
    tokens: int
    targets: int
    """Tokens that are learnt, or labels of a classifier."""
    longest: int
    """Tokens of the longest row, or piece of a long text, before it is cut."""
    cut: int
    """Rows that were longer than data.max_length."""
    cut_tokens: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows without any effect, by reason."""
    duplicates: int = 0
    """Rows whose tokens and targets an earlier row has too."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Rows of each label of a classifier."""
    numbers: tuple[float, float] | None = None
    """The smallest and the largest number that is to be predicted."""
    notes: tuple[str, ...] = ()
    """How the rows were changed for the model."""
    is_complete: bool = True
    """False if only the first rows were read."""

    @property
    def dropped_share(self) -> float:
        """The share of the rows that are dropped."""
        return sum(self.dropped.values()) / self.rows if self.rows else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the tally as plain values."""
        return asdict(self)

    def describe(self) -> str:
        """Return the tally in one sentence."""
        parts = [f"{self.rows:,} rows", f"{self.tokens:,} tokens", f"{self.targets:,} learnt"]
        if self.samples > self.rows:
            parts.insert(1, f"split into {self.samples:,} pieces")
        parts += [f"longest {self.longest:,}"]
        parts += [f"{self.cut:,} rows cut ({self.cut_tokens:,} tokens)"] if self.cut else []
        parts += [f"{count:,} dropped ({why})" for why, count in self.dropped.items() if count]
        parts += [f"{self.duplicates:,} duplicates"] if self.duplicates else []
        if self.labels:
            parts.append(", ".join(f"{label}: {count:,}" for label, count in self.labels.items()))
        if self.numbers:
            parts.append(f"from {self.numbers[0]:g} to {self.numbers[1]:g}")
        return ("" if self.is_complete else "first ") + "; ".join(parts)


def make_tally(values: Mapping[str, Any]) -> TokenTally:
    """Return the tally of plain values. Raise KeyError or TypeError if they are none."""
    known = {item.name: values[item.name] for item in fields(TokenTally)}
    known |= {name: tuple(known[name]) for name in ("notes", "numbers") if known[name] is not None}
    return TokenTally(**known)


def parse_tally(text: str | bytes) -> TokenTally:
    """Return the tally of a JSON document. Raise ValueError if it is none."""
    try:
        return make_tally(json.loads(text))
    except (KeyError, TypeError) as error:
        raise ValueError("not a tally of tokens") from error


def read_tally(path: Path) -> TokenTally | None:
    """Return the tally in a file, or None if there is none."""
    try:
        return parse_tally(path.read_text())
    except (OSError, ValueError):
        return None


def iter_tally_notes(tally: TokenTally, key: str) -> Iterator[str]:
    """Yield what a user should know about a data set before it is trained on."""
    yield from (f"{key}: {note}" for note in tally.notes)
    if tally.dropped_share > WARN_DROPPED:
        yield f"{key}: {tally.dropped_share:.0%} of the rows are dropped: {_list_reasons(tally)}"


def check_dropped(tally: TokenTally, key: str, *, limit: float) -> list[Fault]:
    """Return a fault if nothing is learnt of all rows, or if more of them are dropped than
    data.max_dropped allows.
    """
    if tally.is_complete and tally.rows and not tally.targets:
        return [_refuse_unlearnt(tally, key)]
    if tally.dropped_share <= limit:
        return []
    problem = f"{tally.dropped_share:.0%} of the rows are dropped ({_list_reasons(tally)})"
    allowed = f"data.max_dropped allows {limit:.0%}"
    if not tally.dropped.get(CUT_OFF):
        return [Fault(key, problem, f"Fix the rows; {allowed}.")]
    longest = f"the longest row has {tally.longest:,} tokens"
    return [Fault(key, problem, f"Increase data.max_length ({longest}); {allowed}.")]


def _refuse_unlearnt(tally: TokenTally, key: str) -> Fault:
    """Return the fault of rows of which none teaches anything."""
    problem = f"nothing is learnt of its {tally.rows:,} rows ({_list_reasons(tally)})"
    remedies = list[str]()
    if tally.dropped.get(BAD):
        first = next((note for note in tally.notes if note.startswith(SKIPPED)), "")
        example = f", e.g. {first.removeprefix(SKIPPED)}" if first else ""
        remedies.append(f"Fix the bad rows{example}.")
    if tally.dropped.get(CUT_OFF):
        remedies.append(f"Increase data.max_length (the longest row has {tally.longest:,} tokens).")
    if tally.dropped.get(UNWEIGHTED):
        remedies.append("Give the rows answers that are not empty and whose weight is not 0.")
    return Fault(key, problem, " ".join(remedies) or "Use rows with something to learn.")


def require_rows(tallies: Mapping[str, TokenTally], *, limit: float) -> None:
    """Raise InputError if a data set loses more rows than data.max_dropped allows."""
    checks = (check_dropped(tally, key, limit=limit) for key, tally in tallies.items())
    if faults := [fault for faults in checks for fault in faults]:
        raise InputError(faults)


def _list_reasons(tally: TokenTally) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in tally.dropped.items() if count)
