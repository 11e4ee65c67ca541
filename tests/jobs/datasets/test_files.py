"""What a user may name, and what a file may hold, down to the hostile ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import Fault, InputError
from jobs.inspect.datasets import data_row
from jobs.inspect.datasets.files import read_rows

ROWS = [{"text": "a"}, {"text": "grüße, \u2028 you"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = 'text\na\n"grüße, \u2028 you"\n'.encode()


def parquet(path: Path, rows: list[dict[str, object]] | None = None) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows or ROWS), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        pytest.param("d.jsonl", JSONL, [1, 2], id="jsonl"),
        pytest.param("d.jsonl", JSONL.rstrip(), [1, 2], id="no line end at the end"),
        pytest.param("d.jsonl", b"\xef\xbb\xbf" + JSONL, [1, 2], id="byte order mark"),
        pytest.param("d.jsonl", JSONL.replace(b"\n", b"\r\n\r\n"), [1, 3], id="blank lines, CRLF"),
        pytest.param("d.JSONL", JSONL, [1, 2], id="capital extension"),
        pytest.param("d.jsonl.gz", gzip.compress(JSONL), [1, 2], id="jsonl.gz"),
        pytest.param(
            "d.jsonl.gz",
            b"".join(map(gzip.compress, JSONL.splitlines(True))),
            [1, 2],
            id="two gzips",
        ),
        pytest.param("d.json", JSONL, [1, 2], id="lines in .json"),
        pytest.param("d.json", json.dumps(ROWS).encode(), [1, 1], id="array"),
        pytest.param("d.json", json.dumps(ROWS, indent=1).encode(), [2, 5], id="array over lines"),
        pytest.param(
            "d.json", b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode(), [2, 2], id="array, BOM"
        ),
        pytest.param("d.json.gz", gzip.compress(json.dumps(ROWS).encode()), [1, 1], id="json.gz"),
        pytest.param("d.csv", CSV, [2, 3], id="csv"),
        pytest.param("d.csv", b"\xef\xbb\xbf" + CSV + b"\n", [2, 3], id="csv, BOM"),
        pytest.param("d.tsv", CSV.replace(b'"', b""), [2, 3], id="tsv"),
        pytest.param("d.txt", "a\n\n  \ngrüße, \u2028 you".encode(), [1, 4], id="txt"),
        pytest.param(
            "d.txt.gz", gzip.compress("a\ngrüße, \u2028 you\n".encode()), [1, 2], id="txt.gz"
        ),
    ],
)
def test_every_kind_of_file_gives_its_rows_and_their_lines(
    tmp_path: Path, name: str, content: bytes, lines: list[int]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    rows = list(read_rows(path))
    assert [row.values for row in rows] == ROWS
    assert [row.line for row in rows] == lines
    assert rows[0].file == str(path)


def test_parquet_gives_its_rows_nested_ones_too(tmp_path: Path) -> None:
    chat = [{"messages": [{"role": "user", "content": "hi"}], "label": 3}]
    parquet(tmp_path / "d.parquet", chat)
    (row,) = read_rows(tmp_path / "d.parquet")
    assert row.values == chat[0] and row.line == 1


def test_a_quoted_cell_may_run_over_lines(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('text\n"a\nb"\nc\n')
    rows = list(read_rows(tmp_path / "d.csv"))
    assert [(row.line, row.values["text"]) for row in rows] == [(2, "a\nb"), (4, "c")]


GZIPPED = gzip.compress(JSONL * 5000)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(
            "d.jsonl", JSONL + b'{"text": "\xff"}\n', r":3: not UTF-8.*0xff", id="not UTF-8"
        ),
        pytest.param("d.jsonl", JSONL + b'{"text": "abc', r":3: .*truncated", id="last line cut"),
        pytest.param(
            "d.jsonl", b'{"text" "a"}\n' + JSONL, r":1: invalid JSON \(.*column", id="invalid JSON"
        ),
        pytest.param("d.jsonl", JSONL + b"[1]\n", r":3: the row is an array", id="an array"),
        pytest.param("d.jsonl", b"null\n", r":1: the row is null", id="null"),
        pytest.param("d.jsonl", b'"a"\n', r":1: the row is a string", id="a string"),
        pytest.param("d.jsonl", b"[" * 100_000 + b"\n", r":1: invalid JSON", id="a deep nest"),
        pytest.param(
            "d.jsonl", b'{"a":' + b"9" * 5000 + b"}\n", r":1: invalid JSON", id="a giant number"
        ),
        pytest.param("d.jsonl", b"\0" * 100 + b"\n", r":1: invalid JSON", id="zero bytes"),
        pytest.param(
            "d.jsonl", JSONL + b"x" * 2000, r":3: the line is longer than 1,000", id="a long line"
        ),
        pytest.param("d.jsonl.gz", GZIPPED[:-30], r"gz: truncated gzip", id="gzip cut short"),
        pytest.param("d.jsonl.gz", JSONL, r"gz: corrupt gzip", id="not gzip"),
        pytest.param(
            "d.jsonl.gz",
            GZIPPED[:-8] + b"\0\0\0\0" + GZIPPED[-4:],
            r"gz: corrupt gzip",
            id="bad gzip",
        ),
        pytest.param(
            "d.jsonl.gz",
            gzip.compress(b"x" * 10**7),
            r":1: the line is longer",
            id="a gzip that swells",
        ),
        pytest.param(
            "d.json", json.dumps(ROWS)[:-1].encode(), r":1: truncated", id="array without end"
        ),
        pytest.param(
            "d.json", json.dumps(ROWS)[:-4].encode(), r":1: truncated", id="array cut in text"
        ),
        pytest.param(
            "d.json", b'[{"text": "a"},\n{"text" 1}]', r":2: invalid JSON", id="array, bad element"
        ),
        pytest.param(
            "d.json", b'[{"text": "a"}] x', r":1: invalid JSON after", id="array and more"
        ),
        pytest.param(
            "d.json", b'[{"text": "a"},\n 3]', r":2: the row is a number", id="array of a number"
        ),
        pytest.param("d.json", b'[{"text":\n "\xff"}]', r":2: not UTF-8", id="array, not UTF-8"),
        pytest.param(
            "d.csv", CSV + b"a,b\n", r":4: 2 cells, but the header has 1", id="too many cells"
        ),
        pytest.param("d.csv", CSV + b'"a\n', r":4: invalid CSV", id="an unclosed quote"),
        pytest.param("d.csv", b"a,a\n1,2\n", r":1: the header repeats \['a'\]", id="double names"),
        pytest.param("d.parquet", JSONL, r":1: invalid or truncated parquet", id="not parquet"),
        pytest.param("d.parquet", b"", r":1: invalid or truncated parquet", id="empty parquet"),
        pytest.param("d.pkl", b"", r"unsupported file type \.pkl", id="unknown kind"),
        pytest.param("d", b"", r"unsupported file type d", id="no extension"),
        pytest.param("d.parquet.gz", b"", r"unsupported file type", id="gzipped parquet"),
    ],
)
def test_a_hostile_file_is_refused_by_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    if "long" in message:
        monkeypatch.setattr(data_row, "MAX_LINE_BYTES", 1000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(read_rows(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))


def test_a_parquet_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(parquet(path)[:-20])
    with pytest.raises(InputError, match="invalid or truncated parquet"):
        list(read_rows(path))


def test_reading_goes_on_after_a_bad_line_when_faults_are_gathered(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a"}\n{bad\n\xff\n{"text": "b"}\n3\n')
    faults: list[Fault] = []
    assert [row.values["text"] for row in read_rows(path, on_fault=faults.append)] == ["a", "b"]
    assert [fault.key for fault in faults] == [f"{path}:{line}" for line in (2, 3, 5)]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.csv", "d.txt", "d.parquet"])
def test_every_byte_of_a_sound_file_is_passed_on_once(tmp_path: Path, name: str) -> None:
    path, size = tmp_path / name, bytearray()
    contents = {".gz": GZIPPED, ".csv": CSV, ".json": json.dumps(ROWS).encode()}
    contents[".txt"] = b"a\nb\n"
    path.write_bytes(contents.get(path.suffix, JSONL))
    if path.suffix == ".parquet":
        parquet(path)
    list(read_rows(path, on_chunk=size.extend))
    assert bytes(size) == path.read_bytes()


def test_a_file_is_streamed_and_not_read_ahead(tmp_path: Path) -> None:
    path, size = tmp_path / "d.jsonl", bytearray()
    path.write_bytes(b'{"text": "a"}\n' * 500_000)
    next(read_rows(path, on_chunk=size.extend))
    assert len(size) <= 2**20
