"""`results.parquet`: what is read back is what was written, and its columns keep their types."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from jobs.search.report.results import build_table, write_parquet
from jobs.search.trial_record import TrialRecord
from tests.jobs.search.builders import HOSTILE, read_parquet, row, search


def test_records_are_read_back_unchanged(tmp_path: Path):
    rows = search(18)
    write_parquet(tmp_path / "results.parquet", rows)
    assert read_parquet(tmp_path / "results.parquet") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["results.parquet"]


def test_every_field_and_every_key_is_a_column():
    table = build_table(search())
    assert {field.name for field in fields(TrialRecord)} <= set(table.column_names)
    assert table.column("config.method.rank").to_pylist() == [
        row.config["method.rank"] for row in search()
    ]
    assert table.num_rows == 12


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2, 4, None], pa.int64()),
        ([0.1, None, 0.2], pa.float64()),
        ([1, 0.1], pa.float64()),
        ([True, None], pa.bool_()),
        (["rows", None], pa.string()),
    ],
    ids=["whole numbers", "numbers", "both", "yes or no", "words"],
)
def test_a_key_of_one_type_keeps_it(values: list[Any], kind: pa.DataType):
    column = build_table([row(n, config={"a": v}) for n, v in enumerate(values)]).column("config.a")
    assert column.type == kind and column.to_pylist() == values


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([8, "8"], ["8", "8"]),
        ([True, 1], ["true", "1"]),
        ([["q", "v"], "all-linear"], ['["q", "v"]', "all-linear"]),
        ([2**70, 1], [str(2**70), "1"]),
        ([None, None], [None, None]),
    ],
    ids=["number and word", "yes and number", "list and word", "too large", "nothing"],
)
def test_a_key_of_mixed_types_is_text_and_the_record_is_read_back_unchanged(
    values: list[Any], texts: list[str | None], tmp_path: Path
):
    rows = [row(n, config={"a": v}) for n, v in enumerate(values)]
    column = build_table(rows).column("config.a")
    assert column.type == pa.string() and column.to_pylist() == texts
    write_parquet(tmp_path / "r", rows)
    assert read_parquet(tmp_path / "r") == rows


def test_a_key_that_a_trial_lacks_is_null(tmp_path: Path):
    rows = [row(0, config={"a": 1}), row(1, config={"b": HOSTILE})]
    table = build_table(rows)
    assert table.column("config.a").to_pylist() == [1, None]
    write_parquet(tmp_path / "r", rows)
    assert read_parquet(tmp_path / "r") == rows


def test_no_trials_make_an_empty_table(tmp_path: Path):
    write_parquet(tmp_path / "r", [])
    assert read_parquet(tmp_path / "r") == []
    types = {field.name: field.type for field in parquet.read_schema(tmp_path / "r")}
    assert types["metric"] == pa.float64() and types["number"] == pa.int64()


def test_an_existing_file_is_replaced_atomically(tmp_path: Path):
    write_parquet(tmp_path / "r", search(3))
    write_parquet(tmp_path / "r", search(4))
    assert len(read_parquet(tmp_path / "r")) == 4
