"""`python -m jobs.tools.preview --spec SPEC`: the first rows as tokens, the learnt ones marked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from rich.console import Console
from rich.text import Text

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.files import read_rows
from jobs.inspect.datasets.formats import LabelledExample, read_example
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.spec.load import load_spec, make_trial_spec
from jobs.spec.schema import SearchSpec
from jobs.train.data.tokenize_run import tokenize_run
from jobs.train.job_main import run_job
from jobs.train.localize import fetch_spec
from jobs.train.monitor.event_text import escape_control

BRACKETS = "⟦", "⟧"
"""Around learnt tokens where there is no colour."""


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

    def to_json(self) -> dict[str, Any]:
        """Return the sample as plain values."""
        parts = [{"text": part.text, "learnt": part.is_learnt} for part in self.parts]
        counts = {"tokens": self.tokens, "learnt": self.learnt, "cut": self.cut}
        return {"row": self.location, **counts, "label": self.label, "parts": parts}


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
        training = make_trial_spec(spec, {}) if isinstance(spec, SearchSpec) else spec
        # Whoever asks why rows are dropped must see them.
        data = training.data.model_copy(update={"max_dropped": 1.0})
        training = training.model_copy(update={"data": data})
        validated = validate_run(training, quick=True, with_store=False)
        encoder = _make_encoder(validated)
        samples = [
            sample
            for row in _select_rows(validated, options.rows, options.row)
            for sample in preview_row(row, encoder, validated)
        ]
        tallies = tokenize_run(validated, quick=True).plan.tallies
        if options.json:
            figures = {key: tally.to_json() for key, tally in tallies.items()}
            print(
                json.dumps(
                    {"samples": [s.to_json() for s in samples], "tallies": figures}, indent=2
                )
            )
            return
        console = Console(highlight=False)
        for sample in samples:
            print_sample(console, sample)
        for key, tally in tallies.items():
            console.print(Text(escape_control(f"{key}: {tally.describe()}")))
            for note in tally.notes:
                console.print(Text(escape_control(f"note: {note}.")))

    return run_job(work)


def preview_row(row: Row, encoder: Any, validated: ValidatedRun) -> Iterator[PreviewSample]:
    """Yield the samples of a row as the run would learn them. Raise InputError."""
    scan = validated.train_scan
    example = read_example(row, scan.format, task=validated.spec.model.task, columns=scan.columns)
    for sample in encoder(example, where=row.location):
        label = example.label if isinstance(example, LabelledExample) else None
        learnt = [False] * len(sample.input_ids)
        if label is None:
            learnt = [label_id >= 0 for label_id in sample.labels]
        pairs = zip(sample.input_ids, learnt, strict=True)
        parts = tuple(
            PreviewPart(str(encoder.tokenizer.decode([token for token, _ in run])), is_learnt)
            for is_learnt, run in groupby(pairs, key=lambda pair: pair[1])
        )
        yield PreviewSample(
            row.location, parts, len(learnt), sample.targets, sample.truncated, label
        )


def print_sample(console: Console, sample: PreviewSample) -> None:
    """Print a sample: a line about it, and its text with the learnt parts marked."""
    cut = f", {sample.cut:,} more cut off" if sample.cut else ""
    label = f", label {sample.label}" if sample.label is not None else ""
    heading = f"{sample.location}: {sample.tokens:,} tokens, {sample.learnt:,} learnt{cut}{label}"
    console.print(Text(escape_control(heading), style="bold"))
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


def _select_rows(validated: ValidatedRun, count: int, location: str | None) -> list[Row]:
    """Return the first rows, or the one at a place. Raise InputError if there is none."""
    rows = (row for path in validated.train_scan.files for row in read_rows(path))
    if location is None:
        return list(islice(rows, count))
    for row in rows:
        if row.location == location or row.location.endswith(f"/{location}"):
            return [row]
    problem = f"no row of data.train is at {location}"
    raise InputError([Fault("--row", problem, "Use FILE:LINE as errors name it.")])


if __name__ == "__main__":
    sys.exit(main())
