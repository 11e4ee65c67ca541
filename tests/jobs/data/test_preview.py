"""`slora data preview`: the tokens of the first rows, the learnt ones marked, and the tally."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.tools.preview import main
from tests.tiny import (
    chat_rows,
    hollow_model,
    labelled_rows,
    pair_rows,
    tiny_encoder_decoder,
    tiny_spec,
    write_spec,
)


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
    assert "data.train: 4 rows" in shown
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


def preview(folder: Path, capsys: Any, **changes: Any) -> dict[str, Any]:
    spec = str(write_spec(folder / "spec.yaml", tiny_spec(folder, **changes)))
    assert main(["--spec", spec, "--rows", "1", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_prompt_and_the_completion_that_a_decoder_learns_are_shown(tmp_path: Path, capsys: Any):
    tiny_encoder_decoder(tmp_path / "model")
    pair_rows(tmp_path / "train.jsonl", 4)
    data = {"format": "auto"}
    document = preview(tmp_path, capsys, model={"task": "seq2seq"}, data=data)
    (sample,) = document["samples"]
    assert [(part["text"], part["learnt"]) for part in sample["parts"]] == [
        ("What colour is the cup 0?<|im_end|>", False), ("red<|im_end|>", True),
    ]  # fmt: skip
    tally = document["tallies"]["data.train"]
    assert (tally["targets"], tally["longest"]) == (4 + 6 + 5 + 4, 28)


@pytest.mark.parametrize(
    ("kind", "labels", "shown", "tally"),
    [
        ("many", [["b", "a"], ["b"], []], "b, a", {"labels": {"a": 1, "b": 2}, "numbers": None}),
        ("number", [2.5, -1, 4], "2.5", {"labels": {}, "numbers": [-1.0, 4.0]}),
    ],
)
def test_labels_of_every_kind_are_shown_and_counted(
    tmp_path: Path, capsys: Any, kind: str, labels: Any, shown: str, tally: dict[str, Any]
):
    hollow_model(tmp_path / "model", says={"architectures": ["BertModel"], "model_type": "bert"})
    labelled_rows(tmp_path / "train.jsonl", labels)
    data = {"format": "auto", "labels": kind}
    document = preview(tmp_path, capsys, model={"task": "sequence-classification"}, data=data)
    (sample,) = document["samples"]
    assert sample["label"] == shown and not any(part["learnt"] for part in sample["parts"])
    assert tally.items() <= document["tallies"]["data.train"].items()
