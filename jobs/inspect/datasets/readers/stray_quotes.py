"""Tell a cell of several lines from rows that a stray quote has swallowed."""

from __future__ import annotations

MIN_LINES = 3
"""Lines between the first and the last one that must look like rows."""
MIN_SHARE = 0.9
"""Of these lines, the share that must have as many separators as the header."""
FAULT_LINES = 20
"""So many lines are no cell. Fewer may be a table that somebody quotes in a cell."""


class RecordShape:
    """Counts the lines of a record that are as wide as the header."""

    def __init__(self, separator: str) -> None:
        self._separator = separator
        self._separators = 0
        self._opening = self._closing = ""
        self._inner = self._wide = self.lines = 0

    def set_width(self, cells: int) -> None:
        """Set the number of cells of the header."""
        self._separators = cells - 1

    def add(self, line: str) -> None:
        """Count a line of the record."""
        self.lines += 1
        if self.lines == 1:
            self._opening = line
            return
        if self._closing.strip():
            self._inner += 1
            self._wide += self._is_wide(self._closing)
        self._closing = line

    def start(self) -> None:
        """Begin the next record."""
        self._opening = self._closing = ""
        self._inner = self._wide = self.lines = 0

    def has_rows(self) -> bool:
        """Return whether the lines look like rows, the first and the last one too."""
        if not self._separators or self._wide < max(MIN_LINES, MIN_SHARE * self._inner):
            return False
        # A quote at the end of a line, or at the start of one, surrounds a text of whole lines.
        is_block = self._opening.rstrip().endswith('"') or self._closing.lstrip().startswith('"')
        return not is_block and self._is_wide(self._opening) and self._is_wide(self._closing)

    def _is_wide(self, line: str) -> bool:
        return line.count(self._separator) == self._separators
