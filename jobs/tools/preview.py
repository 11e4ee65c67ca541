"""`python -m jobs.tools.preview --spec SPEC`: the first rows as tokens, the learnt ones marked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from rich.console import Console
from rich.text import Text

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.data_row import FaultHandler, Row
from jobs.inspect.datasets.files import read_rows
from jobs.inspect.datasets.formats import LabelledExample, read_example
from jobs.inspect.datasets.labels import format_label
from jobs.plan.data_report import find_data_warnings, list_unused_columns
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.plan.token_tally import TokenTally, iter_tally_notes
from jobs.spec.load import load_spec, make_trial_spec
from jobs.spec.schema import RunSpec, SearchSpec
from jobs.train.data.tokenization import IGNORE_INDEX
from jobs.train.data.tokenize_run import tokenize_run
from jobs.train.job_main import run_job
from jobs.train.localize import fetch_spec
from jobs.train.monitor.event_text import escape_control

BRACKETS = "⟦", "⟧"
"""Around learnt tokens where there is no colour."""
MAX_PIECES = 3
"""Pieces of a long text that are shown."""


@dataclass(frozen=True)
class PreviewPart:
    """Neighbouring tokens that are all learnt, or all not."""

    text: str
    is_learnt: bool


@dataclass(frozen=True)
class PreviewSample:
    """A sample of a row: its place, its tokens as text, and its counts."""

    location: str
    parts: tuple[PreviewPart, ...]
    tokens: int
    learnt: int
    cut: int
    label: str | None = None
    piece: int = 1
    pieces: int = 1
    """The number of the piece, and how many pieces the row has."""

    @property
    def heading(self) -> str:
        """The line above the text of the sample."""
        piece = f", piece {self.piece:,} of {self.pieces:,}" if self.pieces > 1 else ""
        learnt = f"{self.learnt:,} learnt" if self.label is None else f"label {self.label}"
        cut = f", {self.cut:,} more cut off" if self.cut else ""
        return f"{self.location}{piece}: {self.tokens:,} tokens, {learnt}{cut}"

    def to_json(self) -> dict[str, Any]:
        """Return the sample as plain values."""
        parts = [{"text": part.text, "learnt": part.is_learnt} for part in self.parts]
        counts = {"tokens": self.tokens, "learnt": self.learnt, "cut": self.cut}
        place = {"row": self.location, "piece": self.piece, "pieces": self.pieces}
        return {**place, **counts, "label": self.label, "parts": parts}


@dataclass(frozen=True)
class Preview:
    """The first rows as a run would learn them, and the tally of its data sets."""

    samples: tuple[PreviewSample, ...]
    tallies: Mapping[str, TokenTally]
    skipped: tuple[Fault, ...] = ()
    """The faults of the rows that would have been shown, with `on_bad_row: skip`."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """The columns of each data set that nothing reads, as text."""
    warnings: tuple[str, ...] = ()
    """What the plan warns of in the files."""
    notes: tuple[str, ...] = ()
    """Notes of the plan that are on tokens, not on a data set."""

    def to_json(self) -> dict[str, Any]:
        """Return the preview as plain values."""
        return {
            "samples": [sample.to_json() for sample in self.samples],
            "skipped": [str(fault) for fault in self.skipped],
            "not_used": dict(self.unused),
            "warnings": list(self.warnings),
            "tallies": {key: tally.to_json() for key, tally in self.tallies.items()},
            "notes": list(self.notes),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the rows of one spec. Exit codes as in `jobs.finetune`."""
    parser = argparse.ArgumentParser(prog="jobs.tools.preview", description=main.__doc__)
    parser.add_argument("--spec", required=True, help="Path of the YAML spec.")
    parser.add_argument("--set", action="append", default=[], help="Override a key of the spec.")
    parser.add_argument("--rows", type=int, default=3, help="Number of rows to show.")
    parser.add_argument("--row", help="Show the row at this place only, as FILE:LINE.")
    parser.add_argument("--json", action="store_true", help="Output JSON.")
    options = parser.parse_args(arguments)

    def work() -> None:
        spec = load_spec(fetch_spec(options.spec), options.set)
        preview = make_preview(spec, count=options.rows, location=options.row)
        if options.json:
            print(json.dumps(preview.to_json(), indent=2))
        else:
            print_preview(Console(highlight=False), preview)

    return run_job(work)


def make_preview(spec: RunSpec, *, count: int, location: str | None = None) -> Preview:
    """Return the first rows of data.train, or the one at a place, and the tally of the first rows
    of each data set. Raise InputError with all faults.
    """
    training = make_trial_spec(spec, {}) if isinstance(spec, SearchSpec) else spec
    validated = validate_run(training, quick=True, with_store=False, tokenizes_next=True)
    # Whoever asks why rows are dropped must see them.
    validated = tokenize_run(validated, quick=True, allows_dropped=True)
    samples, skipped = list[PreviewSample](), list[Fault]()
    encoder = _make_encoder(validated)
    for row in _select_rows(validated, count, location, skipped.append):
        try:
            samples += preview_row(row, encoder, validated)
        except InputError as error:
            if training.data.on_bad_row != "skip":
                raise
            skipped += error.faults
    notes = tuple(n for n in validated.plan.notes if n.startswith("method.train_tokens:"))
    return Preview(
        tuple(samples),
        validated.plan.tallies,
        tuple(skipped),
        dict(list_unused_columns(validated)),
        tuple(find_data_warnings(validated)),
        notes,
    )


def preview_row(row: Row, encoder: Any, validated: ValidatedRun) -> Iterator[PreviewSample]:
    """Yield the samples of a row as the run would learn them. Raise InputError."""
    scan = validated.train_scan
    example = read_example(
        row,
        scan.format,
        task=validated.spec.model.task,
        columns=scan.columns,
        label_kind=scan.label_kind,
    )
    label = None
    if isinstance(example, LabelledExample):
        name = example.label
        label = encoder.match_label(name) if isinstance(name, str) else format_label(name)
    samples = encoder(example, where=row.location)
    for number, sample in enumerate(samples, start=1):
        pairs = _mark_tokens(sample)
        parts = tuple(
            PreviewPart(str(encoder.tokenizer.decode([token for token, _ in run])), is_learnt)
            for is_learnt, run in groupby(pairs, key=lambda pair: pair[1])
        )
        counts = len(pairs), sample.targets, sample.truncated
        yield PreviewSample(row.location, parts, *counts, label, number, len(samples))


def print_preview(console: Console, preview: Preview) -> None:
    """Print the samples, and below them the tally of each data set with its notes."""
    for sample in preview.samples:
        if sample.piece <= MAX_PIECES:
            print_sample(console, sample)
        elif sample.piece == sample.pieces:
            console.print(f"... {sample.pieces - MAX_PIECES:,} more pieces of {sample.location}\n")
    for fault in preview.skipped:
        console.print(Text(escape_control(f"skipped: {fault}")))
    for warning in preview.warnings:
        console.print(Text(escape_control(f"warning: {warning}.")))
    for key, tally in preview.tallies.items():
        console.print(Text(escape_control(f"{key}: {tally.describe()}")))
        for note in iter_tally_notes(tally, key):
            console.print(Text(escape_control(f"note: {note}.")))
    for key, columns in preview.unused.items():
        console.print(Text(escape_control(f"{key}: not used: {columns}")))
    for note in preview.notes:
        console.print(Text(escape_control(f"note: {note}.")))


def _mark_tokens(sample: Any) -> list[tuple[int, bool]]:
    """Return the tokens of a sample, those of a completion behind its prompt, and which of them are
    learnt.
    """
    if sample.kind == "tokens":
        learnt = (label != IGNORE_INDEX for label in sample.labels)
        return list(zip(sample.input_ids, learnt, strict=True))
    answer = sample.labels if sample.kind == "completion" else ()
    return [*((token, False) for token in sample.input_ids), *((int(t), True) for t in answer)]


def print_sample(console: Console, sample: PreviewSample) -> None:
    """Print a sample: a line about it, and its text with the learnt parts marked."""
    console.print(Text(escape_control(sample.heading), style="bold"))
    has_colour = console.is_terminal and "NO_COLOR" not in os.environ
    text = Text()
    for part in sample.parts:
        content = escape_control(part.text)
        if part.is_learnt and not has_colour:
            content = content.join(BRACKETS)
        text.append(content, style="black on green" if part.is_learnt and has_colour else "")
    console.print(text)
    console.print()


def _make_encoder(validated: ValidatedRun) -> Any:
    from jobs.train.data.run_encoder import make_run_encoder

    return make_run_encoder(validated.spec, validated.model.folder, validated.plan.labels)


def _select_rows(
    validated: ValidatedRun, count: int, location: str | None, skip: FaultHandler
) -> list[Row]:
    """Return the first rows, or the one at a place. Raise InputError if there is none."""
    on_fault = skip if validated.spec.data.on_bad_row == "skip" else None
    rows = (
        row for path in validated.train_scan.files for row in read_rows(path, on_fault=on_fault)
    )
    if location is None:
        return list(islice(rows, count))
    for row in rows:
        if row.location == location or row.location.endswith(f"/{location}"):
            return [row]
    problem = f"no row of data.train is at {location}"
    raise InputError([Fault("--row", problem, "Use FILE:LINE as errors name it.")])


if __name__ == "__main__":
    sys.exit(main())
