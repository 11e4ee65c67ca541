"""The terminal: results on stdout, notes on stderr, as text and tables that fit 80 columns.

Untrusted text (names, paths, metrics in manifests) is escaped by `escape_control` before display.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from jobs.errors import JobsError
from jobs.file_errors import translate_file_error
from jobs.train.monitor.event_text import escape_control

err_console = Console(stderr=True, highlight=False)
out_console = Console(highlight=False)

BAR_DELAY_S = 2.0
"""Seconds of work before a progress bar appears."""
COLUMN_GAP, MIN_LAST_WIDTH = 2, 8
"""The gap between columns, and the narrowest useful last column."""


class CommandGroup(TyperGroup):
    """The commands of a Typer app: a JobsError becomes one message and its exit code,
    and so does a disk that is full or a file that is closed to the user.

    Use as `typer.Typer(cls=CommandGroup)`; at the root it covers every app below.
    """

    # Any: Typer has its own click under a private name.
    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn a JobsError into its message and exit code."""
        try:
            return super().invoke(ctx)
        except JobsError as error:
            note(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as os_error:
            if (translated := translate_file_error(os_error)) is None:
                raise
            note(str(translated))
            raise typer.Exit(translated.exit_code) from os_error


def print_line(text: str) -> None:
    """Print a line of the result on stdout."""
    out_console.print(Text(escape_control(text)), soft_wrap=True)


def note(text: str) -> None:
    """Print a line about the progress on stderr."""
    err_console.print(Text(escape_control(text)), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value on stdout for other programs, in ASCII: nothing in it can move the cursor."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def show_table(
    rows: Sequence[Sequence[str]],
    *,
    headers: Sequence[str],
    right: Sequence[str] = (),
    folded: Sequence[str] = (),
    single_line: bool = False,
) -> None:
    """Print a table on stdout. The columns in `right` hold numbers.

    If the table is too wide, the first column and those in `folded` are folded, so that they can
    still be copied, and the last one is cut. With `single_line` every row stays on one line, if
    the width holds all columns except the last one.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Limit the last column in advance: Rich would narrow all columns, and cut names.
    last_width = _compute_last_width([headers, *rows])
    single_line = single_line and last_width >= min(
        MIN_LAST_WIDTH, max(len(row[-1]) for row in [headers, *rows])
    )
    for index, header in enumerate(headers):
        table.add_column(
            header,
            justify="right" if header in right else "left",
            overflow="fold" if index == 0 or header in folded else "ellipsis",
            no_wrap=single_line or 0 < index < len(headers) - 1,
            max_width=last_width if single_line and index == len(headers) - 1 else None,
        )
    for row in rows:
        table.add_row(*(Text(escape_control(cell)) for cell in row))
    out_console.print(table)


def _compute_last_width(rows: Sequence[Sequence[str]]) -> int:
    """Return the width that remains for the last column if the others are not cut."""
    *columns, _ = zip(*rows, strict=True)
    widths = [max(cell_len(escape_control(cell)) for cell in column) for column in columns]
    return out_console.width - sum(widths) - COLUMN_GAP * len(widths)


def show_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns on stdout."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(escape_control(name)), Text(escape_control(value)))
    out_console.print(table)


def format_size(count: int) -> str:
    """Format a number of bytes: 512 B, 1.9 MB."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        # 1000 would show 999.96 kB as 1000.0 kB.
        if size < 999.95 or unit == "TB":
            return f"{size:.1f} {unit}"
    raise AssertionError("TB ends the loop")


def format_duration(seconds: float) -> str:
    """Format a duration: 0.4 s, 3 min 12 s, 2 h 5 min, 1 d 3 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    for unit, name, part, part_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if rounded >= unit:
            rest = rounded % unit // part
            return f"{rounded // unit} {name}" + (f" {rest} {part_name}" if rest else "")
    return f"{rounded} s"


class LazyProgressBar:
    """A progress bar on stderr that appears after BAR_DELAY_S of work. Use with `closing`.

    It counts bytes, or the things that `counts` names.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        counts: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counts = counts
        self._title, self._total, self._clock = escape_control(title), total, clock
        self._completed, self._started_at = 0, clock()
        self._bar: Progress | None = None

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Add the count to the completed work."""
        self._completed += count
        if (
            self._bar is None
            and err_console.is_terminal
            and self._clock() - self._started_at >= BAR_DELAY_S
        ):
            self._bar = self._start_bar()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._completed)

    def _start_bar(self) -> Progress:
        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        count_columns = (
            (MofNCompleteColumn(), TextColumn(self._counts))
            if self._counts
            else (DownloadColumn(),)
        )
        bar = Progress(
            *columns, *count_columns, TimeRemainingColumn(), console=err_console, transient=True
        )
        bar.add_task(self._title, total=self._total)
        bar.start()
        return bar
