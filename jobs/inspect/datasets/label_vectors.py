"""Find lists of labels that are vectors: a 0 or 1 for each class instead of the classes' names."""

from __future__ import annotations

from typing import Any

from jobs.errors import Fault
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.row_values import format_value, parse_json_text


class LabelVectorWatch:
    """Looks at the lists of labels of all rows, and tells whether they are vectors.

    They are if all have one length above 1 and hold 0, 1 or booleans only, and one of them repeats
    a value: names in a list never repeat. Lists of class ids, such as [0, 2] and [1], are not.
    """

    def __init__(self) -> None:
        self._is_possible = True
        self._length = 0
        self._repeated: tuple[Row, str, Any] | None = None
        """The first row whose list repeats a value, with its column and the list."""

    def observe(self, row: Row, column: str) -> None:
        """Look at the list of a row, which has been read without a fault."""
        if not self._is_possible:
            return
        vector = parse_json_text(row, column, row.values[column])
        self._length = self._length or len(vector)
        self._is_possible = 1 < self._length == len(vector) and all(map(_is_bit, vector))
        if self._repeated is None and len({*vector}) < len(vector):
            self._repeated = row, column, vector

    def find_fault(self) -> Fault | None:
        """Return the fault of the first row that is surely a vector, or None."""
        if not self._is_possible or self._repeated is None:
            return None
        row, column, vector = self._repeated
        problem = (
            f"{column} is {format_value(vector)}: all rows have a list of {self._length} such "
            "values, one for each class, but data.labels: many reads the names of a row's labels"
        )
        remedy = 'Write the names of the labels of each row, e.g. ["a", "c"], and [] for none.'
        return Fault(row.location, problem, remedy)


def _is_bit(value: Any) -> bool:
    return isinstance(value, int | float) and value in (0, 1)
