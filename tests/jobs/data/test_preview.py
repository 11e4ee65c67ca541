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


def test_columns_that_nothing_reads_are_named(spec: str, tmp_path: Path, capsys: Any):
    path = tmp_path / "train.jsonl"
    assert main(["--spec", spec]) == 0
    assert "not used" not in capsys.readouterr().out
    rows = [json.loads(line) | {"weight": 0, "id": 7} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--spec", spec]) == 0
    assert "data.train: not used: columns weight, id" in capsys.readouterr().out
    assert main(["--spec", spec, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["not_used"] == {"data.train": "columns weight, id"}


def test_numbers_of_tables_are_learnt_as_the_same_class(tmp_path: Path, capsys: Any):
    hollow_model(tmp_path / "model", says={"architectures": ["BertModel"], "model_type": "bert"})
    (tmp_path / "train.csv").write_text("text,label\nx,1.0\ny,1\nz,0\n")
    (tmp_path / "eval.csv").write_text("text,label\nx,1.0\ny,0.0\n")
    files = {"train": str(tmp_path / "train.csv"), "eval": str(tmp_path / "eval.csv")}
    data = {"format": "auto", **files}
    document = preview(tmp_path, capsys, model={"task": "sequence-classification"}, data=data)
    assert document["samples"][0]["label"] == "1"
    tallies = document["tallies"]
    assert tallies["data.train"]["labels"] == {"0": 1, "1": 2}
    assert tallies["data.eval"]["labels"] == {"0": 1, "1": 1}


def test_what_the_plan_warns_of_is_shown(spec: str, tmp_path: Path, capsys: Any):
    rows = "".join(f"q{number},a{number}\n" for number in range(4))
    (tmp_path / "t.csv").write_text(f'prompt,completion\n"q,a\n{rows}q",a\nq,a\n')
    changes = [f"data.train={tmp_path}/t.csv", "data.format=auto"]
    options = ["--spec", spec, *(text for change in changes for text in ("--set", change))]
    assert main(options) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "warning:data.train:" in shown and "t.csv:2:aquotedcellhas6lines" in shown
    assert main([*options, "--json"]) == 0
    assert "a quoted cell has 6 lines" in json.loads(capsys.readouterr().out)["warnings"][0]


def preview(folder: Path, capsys: Any, **changes: Any) -> dict[str, Any]:
    spec = str(write_spec(folder / "spec.yaml", tiny_spec(folder, **changes)))
    # What libraries print while a test saves its model is not the preview's.
    capsys.readouterr()
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
