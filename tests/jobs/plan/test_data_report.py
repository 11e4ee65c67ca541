"""What a plan tells of the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.plan.data_report import describe_data, list_data_lines
from tests.jobs.plan.test_preflight import make_folder, validate_folder
from tests.tiny import chat_rows


def test_a_plan_lists_files_columns_and_the_split_that_nothing_uses(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "rows").mkdir()
    chat_rows(tmp_path / "rows" / "train.jsonl", 8)
    chat_rows(tmp_path / "rows" / "test.jsonl", 3)
    (tmp_path / "rows" / "README.md").write_text("About the rows.")
    text = (tmp_path / "rows" / "train.jsonl").read_text()
    (tmp_path / "rows" / "train.jsonl").write_text(text.replace('"messages"', '"dialog"'))
    data = {"train": str(tmp_path / "rows"), "eval": None, "columns": {"messages": "dialog"}}
    checked = validate_folder(tmp_path, quick=True, data=data)
    lines = dict(list_data_lines(checked))
    assert lines["train files"] == "train.jsonl (jsonl, 8 rows)"
    assert lines["columns"] == "messages: dialog"
    assert lines["left out"] == "README.md (documentation), test.jsonl (split test)"
    assert lines["warning"].startswith("the split test of data.train is not used: set data.eval: ")
    described = describe_data(checked)
    assert described["train"]["files"][0]["rows"] == 8 and len(described["warnings"]) == 1
    checked = validate_folder(tmp_path, data={**data, "eval_fraction": 0.5})
    assert describe_data(checked)["warnings"] == []


def test_an_unknown_field_of_columns_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(InputError, match=r"data.columns.promt: .*'prompt'"):
        validate_folder(tmp_path, data={"columns": {"promt": "question"}})
