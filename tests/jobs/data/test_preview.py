"""`slora data preview`: the tokens of the first rows, the learnt ones marked, and the tally."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.tools.preview import main
from tests.tiny import chat_rows, hollow_model, tiny_spec, write_spec


@pytest.fixture
def spec(tmp_path: Path) -> str:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 4)
    return str(write_spec(tmp_path / "spec.yaml", tiny_spec(tmp_path)))


def test_learnt_tokens_stand_in_brackets_where_there_is_no_colour(spec: str, capsys: Any):
    assert main(["--spec", spec, "--rows", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = "".join(lines)
    assert "train.jsonl:1" in shown and "train.jsonl:2" not in shown
    assert "⟦It is red.<|im_end|>⟧" in shown
    assert "data.train: first 4 rows" in shown
    assert max(map(len, lines)) <= 80


def test_one_row_can_be_named_and_programs_get_json(spec: str, capsys: Any):
    assert main(["--spec", spec, "--row", "train.jsonl:3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (sample,) = document["samples"]
    assert sample["row"].endswith("train.jsonl:3") and sample["cut"] == 0
    assert [part["text"] for part in sample["parts"] if part["learnt"]] == ["It is blue.<|im_end|>"]
    assert document["tallies"]["data.train"]["rows"] == 4
    assert main(["--spec", spec, "--row", "train.jsonl:9"]) == 2
    assert "no row of data.train is at train.jsonl:9" in capsys.readouterr().err
