"""Rows that a stray quote swallows are reported; cells of several lines are not."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.files import read_rows
from jobs.inspect.datasets.scan import scan_dataset

POEM = """Shall I compare thee to a summer's day?
Thou art more lovely, and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date,
Sometime too hot, the eye of heaven shines,
And often is his gold complexion dimm'd"""
CODE = """def add(a, b):
    total = a + b
    print(a, b, total)
    return total

add(1, 2)
x = 3
"""
LETTER = (
    "Dear Ann,\n\nthank you for your letter, which came today, and for the book.\nI hope to see you"
    " soon, perhaps in May, or in June.\nThe garden is green.\n\nYours,\nBob"
)
TABLE = "name,age\nAnn,30\nBob,31\nEve,35\nJim,36\n"
LIST = "\n".join(f"{number}. item" for number in range(50))


def write_table(path: Path, first: int, last: int, opening: str, closing: str) -> list[str]:
    lines = ["prompt,completion", *(f"q{number},a{number}" for number in range(2, 202))]
    lines[first - 1], lines[last - 1] = opening, closing
    path.write_text("\n".join(lines) + "\n")
    return lines


def read_table(path: Path) -> tuple[list[Row], list[Fault]]:
    faults = list[Fault]()
    return list(read_rows(path, on_fault=faults.append)), faults


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        pytest.param('"unbalanced,a20', 'end",b', id="first cell"),
        pytest.param('q,"unbalanced', 'q,end"', id="last cell"),
        pytest.param('"unbalanced,a20', 'q,end"', id="another cell"),
    ],
)
def test_rows_between_two_stray_quotes_are_a_fault(
    tmp_path: Path, opening: str, closing: str
) -> None:
    path = tmp_path / "t.csv"
    write_table(path, 22, 152, opening, closing)
    rows, (fault,) = read_table(path)
    assert len(rows) == 69
    assert fault.key == f"{path}:22" and "Close the quote" in fault.remedy
    assert fault.problem == "a quoted cell runs over 131 lines that look like rows"
    with pytest.raises(InputError, match="131 lines that look like rows"):
        scan_dataset(str(path), "auto", "causal-lm", "data.train")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_have_stray_quotes_too(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "t.csv"
    lines = write_table(path, 22, 152, '"unbalanced,a20', 'end",b')
    path.write_text("\r\n".join(lines).replace(",", separator))
    _, (fault,) = read_table(path)
    assert fault.key == f"{path}:22"


def test_a_few_lines_that_look_like_rows_are_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, 22, 27, '"unbalanced,a20', 'end",b')
    scan = scan_dataset(str(path), "auto", "causal-lm", "data.train")
    assert scan.rows == 195
    assert scan.warnings == (f"{path}:22: a quoted cell has 6 lines that look like rows",)


def test_only_the_first_warnings_are_listed(tmp_path: Path) -> None:
    text = "".join('"a,b\n1,2\n3,4\n5,6\nc",d\n' for _ in range(9))
    (tmp_path / "t.csv").write_text(f"prompt,completion\n{text}")
    scan = scan_dataset(str(tmp_path / "t.csv"), "auto", "causal-lm", "data.train")
    assert len(scan.warnings) == 6 and scan.warnings[-1] == "4 more rows are like these"


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("column", [0, -1])
def test_cells_of_several_lines_are_no_rows(tmp_path: Path, width: int, column: int) -> None:
    texts = [POEM, CODE, LETTER, TABLE, LIST, POEM * 9, CODE * 9, LETTER * 9, TABLE * 9]
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"c{number}" for number in range(width)])
        for text in texts:
            cells = ["x"] * width
            cells[column] = text
            writer.writerow(cells)
    rows, faults = read_table(path)
    assert not faults and len(rows) == len(texts)
    assert [row.location for row in rows if row.warning] == []
    assert [[*row.values.values()][column] for row in rows] == texts
