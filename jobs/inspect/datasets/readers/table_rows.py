"""Stream the rows of tables in text (CSV, TSV) and of plain text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jobs.errors import Fault
from jobs.inspect.datasets import data_row
from jobs.inspect.datasets.data_row import FaultHandler, Row
from jobs.inspect.datasets.readers.stray_quotes import FAULT_LINES, RecordShape
from jobs.inspect.datasets.readers.text_lines import read_lines

SEPARATORS = (",", ";", "\t", "|")
SAMPLE_RECORDS = 50
SAMPLE_BYTES = 2**18
INDEX_NAMES = ("", "Unnamed: 0")
"""Header of the first column if pandas wrote its index."""
UNQUOTE = (
    "Close the quote, or remove it (a quote in a quoted cell is doubled). If the cell is right, "
    "write the rows as JSON lines."
)
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)


@dataclass(frozen=True)
class TableLayout:
    """The separator of a table, and whether a line before the header names it."""

    separator: str
    has_separator_line: bool = False


def detect_layout(head: bytes, suffix: str, *, encoding: str) -> TableLayout:
    """Return the layout of a table: the separator that cuts its records most evenly.

    Excel's `sep=;` line decides if there is one.
    """
    text = head[:SAMPLE_BYTES].decode(encoding, errors="ignore").lstrip("\ufeff")
    lines = text.splitlines(keepends=True)
    if lines and (match := _EXCEL_SEPARATOR.fullmatch(lines[0])):
        return TableLayout(match[1], has_separator_line=True)
    candidates = ("\t", *SEPARATORS) if suffix == ".tsv" else SEPARATORS
    # The last line may be cut.
    scores = {mark: _rate_separator(lines[:-1] or lines, mark) for mark in candidates}
    best = max(candidates, key=lambda mark: scores[mark])
    return TableLayout(best if scores[best] else candidates[0])


def _rate_separator(lines: list[str], separator: str) -> tuple[float, int] | tuple[()]:
    """Return the share of records as long as the header, and its length; nothing if it is one."""
    try:
        widths = [
            len(cells)
            for cells in islice(csv.reader(lines, delimiter=separator), SAMPLE_RECORDS)
            if cells
        ]
    except csv.Error:
        return ()
    if not widths or widths[0] < 2:
        return ()
    return widths.count(widths[0]) / len(widths), widths[0]


def read_table(
    raw: io.BufferedReader[Any],
    file: str,
    report: FaultHandler,
    *,
    encoding: str,
    layout: TableLayout,
) -> Iterator[Row]:
    """Yield the records below the header. Unnamed columns without content are left out."""
    csv.field_size_limit(data_row.MAX_LINE_BYTES)
    shape = RecordShape(layout.separator)
    lines = _TableLines(raw, file, report, encoding, shape, skipped=int(layout.has_separator_line))
    reader = csv.reader(lines, delimiter=layout.separator, strict=True)
    columns: _Columns | None = None
    try:
        for cells in reader:
            location = f"{file}:{lines.start}"
            size, has_rows = shape.lines, shape.has_rows()
            number = lines.next_record()
            if not cells:
                continue
            if columns is None:
                columns = _Columns(tuple(name.strip() for name in cells))
                if fault := columns.find_fault(location):
                    return report(fault)
                shape.set_width(len(cells))
            elif has_rows and (size >= FAULT_LINES or columns.find_problem(cells)):
                runaway = f"a quoted cell runs over {size:,} lines that look like rows"
                report(Fault(location, runaway, UNQUOTE))
            elif problem := columns.find_problem(cells):
                report(Fault(location, problem, "Quote cells that contain the separator."))
            else:
                warning = f"{location}: a quoted cell has {size} lines that look like rows"
                yield Row(columns.make_values(cells), file, number, warning if has_rows else "")
    except csv.Error as error:
        remedy = "Check for an unclosed quote. The rest of the file was not read."
        report(Fault(f"{file}:{lines.start}", f"invalid CSV ({error})", remedy))


class _TableLines:
    """The lines of a table for the csv module, with the number of each record's first line."""

    def __init__(
        self,
        raw: io.BufferedReader[Any],
        file: str,
        report: FaultHandler,
        encoding: str,
        shape: RecordShape,
        *,
        skipped: int,
    ) -> None:
        self._shape = shape
        self._file, self._report = file, report
        self._lines = islice(read_lines(raw, file, report, encoding=encoding), skipped, None)
        self._start: int | None = None
        self._last = skipped

    @property
    def start(self) -> int:
        """The first line of the record that is being read."""
        return self._last + 1 if self._start is None else self._start

    def next_record(self) -> int:
        """Return the first line of the record that was read, and begin the next one."""
        start, self._start = self.start, None
        self._shape.start()
        return start

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            self._last = number
            if "\0" in line:
                problem = f"contains a zero byte at column {line.index(chr(0)) + 1}"
                self._report(Fault(f"{self._file}:{number}", problem, "Save the file as text."))
                continue
            if self._start is None:
                self._start = number
            self._shape.add(line)
            yield line


@dataclass(frozen=True)
class _Columns:
    """The header of a table."""

    names: tuple[str, ...]

    def find_fault(self, location: str) -> Fault | None:
        if self.names[0].startswith(("{", "[")):
            problem = f"the header is {self.names[0][:60]!r}, which looks like JSON"
            return Fault(location, problem, "Rename the file to .jsonl if it holds JSON.")
        named = [name for name in self.names if name]
        repeated = sorted({name for name in named if named.count(name) > 1})
        if not repeated and named:
            return None
        problem = f"the header repeats {repeated}" if repeated else "the header has no names"
        return Fault(location, problem, "Give each column a unique name.")

    def find_problem(self, cells: list[str]) -> str | None:
        if len(cells) != len(self.names):
            return f"{len(cells)} cells, but the header has {len(self.names)}"
        for index, (name, cell) in enumerate(zip(self.names, cells, strict=True)):
            if index and not name and cell.strip():
                return f"cell {index + 1} is in a column without a name"
        return None

    def make_values(self, cells: list[str]) -> dict[str, Any]:
        return {
            name: cell
            for index, (name, cell) in enumerate(zip(self.names, cells, strict=True))
            if name and not (index == 0 and name in INDEX_NAMES)
        }


def read_text(
    raw: io.BufferedReader[Any], file: str, report: FaultHandler, *, encoding: str
) -> Iterator[Row]:
    """Yield each line that is not blank as a text."""
    for number, line in read_lines(raw, file, report, encoding=encoding):
        if number == 1 and re.match(r'\{\s*"', line):
            problem = f"the first line is {line.strip()[:60]!r}, which looks like JSON"
            return report(Fault(f"{file}:1", problem, "Rename the file to .jsonl."))
        if "\0" in line:
            problem = f"contains a zero byte at column {line.index(chr(0)) + 1}"
            report(Fault(f"{file}:{number}", problem, "Save the file as text."))
        elif line.strip():
            yield Row({"text": line.rstrip("\r\n")}, file, number)
