"""Kinds of files that people have: wrappers, encodings, separators, Arrow, and wrong names."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import Fault, InputError
from jobs.inspect.datasets import data_row
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.files import DATA_FILES, describe_file, read_rows
from jobs.inspect.datasets.formats import read_example
from jobs.inspect.datasets.readers.json_rows import CHUNK_BYTES
from jobs.inspect.datasets.scan import scan_dataset
from tests.jobs.datasets.builders import make_row

ROWS = [{"text": "a", "n": "1"}, {"text": "grüße", "n": "2"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = 'text,n\na,1\n"grüße",2\n'
CP1252 = TABLE.encode("cp1252")
WRAPPED = json.dumps({"version": 1, "data": ROWS, "info": {"rows": 2}})
READABLE = {
    "lines over lines": ("d.json", "".join(json.dumps(row, indent=1) + "\n" for row in ROWS)),
    "a wrapper": ("d.json", WRAPPED),
    "a wrapper over lines": ("d.json", json.dumps({"train": ROWS}, indent=2)),
    "an array in .jsonl": ("d.jsonl", json.dumps(ROWS, indent=1)),
    "ndjson": ("d.ndjson", LINES),
    "UTF-16 lines": ("d.jsonl", LINES.encode("utf-16")),
    "bz2": ("d.jsonl.bz2", bz2.compress(LINES.encode())),
    "xz": ("d.json.xz", lzma.compress(json.dumps(ROWS).encode())),
    "csv.gz": ("d.csv.gz", gzip.compress(TABLE.encode())),
    "semicolons": ("d.csv", TABLE.replace(",", ";")),
    "tabs in .csv": ("d.csv", TABLE.replace(",", "\t")),
    "pipes": ("d.csv", TABLE.replace(",", "|")),
    "commas in .tsv": ("d.tsv", TABLE),
    "Excel's line": ("d.csv", "sep=;\r\n" + TABLE.replace(",", ";")),
    "Windows-1252": ("d.csv", CP1252),
    "UTF-16 of Excel": ("d.csv", TABLE.replace(",", "\t").encode("utf-16")),
    "UTF-16 without a mark": ("d.csv", TABLE.encode("utf-16-le")),
    "old Mac": ("d.csv", TABLE.replace("\n", "\r")),
    "pandas' index": ("d.csv", ",text,n\n0,a,1\n1,grüße,2\n"),
    "pandas' index, named": ("d.csv", "Unnamed: 0,text,n\n0,a,1\n1,grüße,2\n"),
    "empty columns": ("d.csv", "text,n,,\na,1,,\ngrüße,2,,\n"),
    "spaces in the header": ("d.csv", "text, n\na,1\ngrüße,2\n"),
}


@pytest.mark.parametrize(("name", "content"), READABLE.values(), ids=READABLE)
def test_files_as_people_have_them_are_read(tmp_path: Path, name: str, content: Any) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [row.values for row in read_rows(tmp_path / name)] == ROWS


REFUSED = {
    "CSV as jsonl": ("d.jsonl", TABLE, ":1: invalid JSON: the first line is 'text,n'. Rename"),
    "JSON as CSV": ("d.csv", LINES, ":1: the header is .* looks like JSON. Rename"),
    "JSON as text": ("d.txt", LINES, ":1: the first line is .* looks like JSON. Rename"),
    "parquet as json": ("d.json", b"PAR1" + b"\0" * 20, "is parquet, not json. Rename.*.parquet"),
    "gzip without .gz": ("d.jsonl", gzip.compress(b"{}"), "is gzip, not jsonl. Rename.*.gz"),
    "a page": ("d.csv", "<!DOCTYPE html><html>", "is a web page, not csv. Download"),
    "a pointer": ("d.parquet", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "Excel": ("d.csv", b"PK\x03\x04abc", "an Excel workbook, not csv. Export"),
    "two arrays": ("d.json", json.dumps({"train": ROWS, "test": ROWS}), "more than one array"),
    "a zero byte": ("d.csv", "text,n\na\0,1\n", ":2: contains a zero byte"),
    "short": ("d.csv", "a,b\n1\n", ":2: 1 cells, but the header has 2"),
    "no name": ("d.csv", "a,,b\n1,2,3\n", ":2: cell 2 is in a column without a name"),
    "no names": ("d.csv", ",\n1,2\n", ":1: the header has no names"),
    "a large field": ("d.csv", 'a\n"' + "x" * 3000, "longer than|larger than field limit"),
    "digits": ("d.json", "[" + "9" * 10**6 + "]", ":1: invalid JSON .a number has too many digits"),
    "depth": ("d.json", '[{"a":' + "[" * 10**5, ":1: invalid JSON .values are nested too deeply"),
    "cut bz2": ("d.jsonl.bz2", bz2.compress(LINES.encode())[:-9], "truncated bzip2"),
    "bad xz": ("d.jsonl.xz", LINES, "corrupt xz"),
    "not arrow": ("d.arrow", LINES, ":1: invalid or truncated arrow"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: Any, message: str
) -> None:
    if "longer" in message:
        monkeypatch.setattr(data_row, "MAX_LINE_BYTES", 1000)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as error:
        list(read_rows(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))


def test_a_row_may_be_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    rows = [{"text": "x" * (CHUNK_BYTES + 7)}, {"text": "y"}, {"text": "z" * (3 * CHUNK_BYTES)}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert [row.values for row in read_rows(tmp_path / "d.json")] == rows


def test_an_array_is_streamed(tmp_path: Path) -> None:
    path, seen = tmp_path / "d.json", bytearray()
    path.write_text(json.dumps([{"text": "a"}] * 400_000))
    next(iter(read_rows(path, on_chunk=seen.extend)))
    assert len(seen) < path.stat().st_size / 2


def test_rows_after_a_bad_line_of_a_table_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('text\na\nb\0\n"c\nd"\ne,f\ng\n')
    faults: list[Fault] = []
    rows = list(read_rows(tmp_path / "d.csv", on_fault=faults.append))
    assert [(row.line, row.values["text"]) for row in rows] == [(2, "a"), (4, "c\nd"), (7, "g")]
    assert [fault.key[-2:] for fault in faults] == [":3", ":6"]


def test_the_plan_names_what_is_unusual_about_a_file(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(CP1252.replace(b",", b";"))
    assert describe_file(tmp_path / "d.csv") == "csv, separated by ';', Windows-1252"
    (tmp_path / "e.csv").write_text(TABLE)
    assert describe_file(tmp_path / "e.csv") == "csv"


CLASS_LABEL = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["bad", "good"]}}}}


@pytest.mark.parametrize("name", ["d.feather", "d.arrow", "stream.arrow"])
def test_arrow_files_are_read_with_the_names_of_classes(tmp_path: Path, name: str) -> None:
    turns = [{"role": "user", "weight": None}, {"role": "assistant", "weight": 1}]
    table = pa.Table.from_pylist([{"label": 1, "m": turns}, {"label": -1, "m": []}] * 30)
    table = table.replace_schema_metadata({"huggingface": json.dumps(CLASS_LABEL)})
    if name == "d.feather":
        feather.write_feather(table, str(tmp_path / name))
    else:
        make_writer = pa.ipc.new_stream if name.startswith("stream") else pa.ipc.new_file
        with make_writer(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    rows = [row.values for row in read_rows(tmp_path / name)]
    assert rows[0] == {"label": "good", "m": [{"role": "user"}, {"role": "assistant", "weight": 1}]}
    assert rows[1]["label"] is None and len(rows) == 60


LABELS = {"booleans": ([True, False], ("false", "true")), "floats": ([1.0, 2.0], ("1", "2"))}


@pytest.mark.parametrize(("values", "labels"), LABELS.values(), ids=LABELS)
def test_labels_of_any_type_get_a_name(
    tmp_path: Path, values: list[Any], labels: tuple[str, ...]
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "label": v}) + "\n" for v in values))
    scan = scan_dataset(str(path), "auto", "sequence-classification", "data.train")
    assert scan.labels == labels and scan.warnings == ()


def test_labels_that_are_almost_the_same_are_named_together(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    labels = ["1", "1 ", "1.0", "Good", "good", "bad", "2"]
    path.write_text("".join(json.dumps({"text": "x", "label": v}) + "\n" for v in labels))
    scan = scan_dataset(str(path), "auto", "sequence-classification", "data.train")
    assert scan.warnings == (
        "the labels '1' and '1 ' and '1.0' are different classes",
        "the labels 'Good' and 'good' are different classes",
    )


def test_a_scan_tells_files_columns_and_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("question;answer;id\na;b;1\n")
    (tmp_path / "test.csv").write_text("question;answer;id\na;b;1\n")
    columns = {"prompt": "question", "completion": "answer"}
    scan = scan_dataset(str(tmp_path), "auto", "causal-lm", "data.train", columns=columns)
    told = scan.to_json()
    assert told["format"] == "prompt-completion" and told["columns"] == columns
    (file,) = told["files"]
    assert (file["kind"], file["rows"]) == ("csv, separated by ';'", 1)
    assert told["unused_columns"] == ["id"]
    assert told["skipped"][0]["reason"] == "split test"


def test_files_of_two_formats_are_refused_by_the_names_of_both(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "b.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(InputError, match=r"b.csv:2: text needs 'text'.*but .*a.jsonl has text"):
        scan_dataset(str(tmp_path), "auto", "causal-lm", "data.train")


def test_one_mistake_in_all_rows_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "x", "answer": "y"}\n' * 500)
    with pytest.raises(InputError, match="499 more errors") as error:
        scan_dataset(str(tmp_path), "auto", "causal-lm", "data.train")
    assert len(error.value.faults) == 2


NAMES = ["messages", "conversations", "prompt", "completion", "text", "label", "tools", "history",
         "instruction", "input", "output", "chosen", "rejected", "system", "premise", "role",
         "hypothesis", "from", "value", "content", "weight", "tool_calls", "function", "arguments",
         "documents", "chat_template_kwargs", "type"]  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4),
    st.sampled_from(["user", "assistant", "gpt", "function_call", "[", "{}", "[{}]", "text"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
ROW_VALUES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
HYPOTHESIS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@HYPOTHESIS
@given(ROW_VALUES, st.sampled_from(["causal-lm", "sequence-classification"]))
def test_any_row_is_an_example_or_a_fault(values: dict[str, Any], task: str) -> None:
    faults: tuple[Fault, ...] = ()
    try:
        assert repr(read_example(make_row(**values), "auto", task=task))
    except InputError as error:
        faults = tuple(error.faults)
    assert all(fault.key == "d.jsonl:7" for fault in faults)


@HYPOTHESIS
@given(st.sampled_from(DATA_FILES), st.binary(max_size=300) | st.text(max_size=100))
def test_any_file_is_rows_or_faults(tmp_path: Path, suffix: str, content: bytes | str) -> None:
    path = tmp_path / f"d{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    faults: list[Fault] = []
    rows = list(read_rows(path, on_fault=faults.append))
    assert all(isinstance(row, Row) and row.file == str(path) for row in rows)
    assert all(fault.key.startswith(str(path)) for fault in faults)
