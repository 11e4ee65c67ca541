"""`slora plan` and `slora train` of a retraining: what is told, and what is not started in vain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.store.local import DirectoryStore
from orchestrator.cli.main import app
from tests.jobs.retrain.builders import committed, lora_files
from tests.jobs.retrain.specs import raw_retrain
from tests.tiny import chat_rows, hollow_model, write_spec


@pytest.fixture
def place(tmp_path: Path) -> Path:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    chat_rows(tmp_path / "eval.jsonl", 4)
    return tmp_path


def _spec(place: Path, section: dict[str, Any] | None = None, **spec: Any) -> str:
    return str(write_spec(place / "retrain.yaml", raw_retrain(place, section, **spec)))


def _ask(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})


def test_a_plan_without_an_adapter_is_of_a_training_from_scratch(place):
    told = json.loads(_ask("plan", _spec(place), "--json").stdout)
    assert told["retrain"] == "a retraining: the training starts from scratch"
    assert [stage["name"] for stage in told["stages"]] == ["sparse", "low-rank"]


def test_a_plan_says_what_it_goes_on_from_and_has_no_sparse_stage(place):
    committed(place, lora_files(place / "one"))
    said = _ask("plan", _spec(place)).output
    assert "starts from tiny@v1" in " ".join(said.split())
    told = json.loads(_ask("plan", _spec(place), "--json").stdout)
    assert [stage["name"] for stage in told["stages"]] == ["low-rank"]


def test_a_plan_from_a_version_that_is_not_there_is_refused(place):
    found = _ask("plan", _spec(place, {"start": "v7"}))
    assert found.exit_code == 2
    assert "tiny" in found.output


def test_a_plan_of_a_bad_section_is_refused_with_its_key(place):
    found = _ask("plan", _spec(place, {"start": "soon"}))
    assert found.exit_code == 2
    assert "retrain.start: 'soon' is not allowed" in " ".join(found.output.split())


@pytest.mark.parametrize("json_too", [False, True])
def test_a_training_without_new_rows_starts_nothing(json_too, place):
    committed(place, lora_files(place / "one"))
    found = _ask("train", _spec(place), *(["--json"] if json_too else []))
    assert found.exit_code == 0
    assert "tiny@v1 was trained on these 8 rows" in " ".join(found.stdout.split())
    assert "Ray" not in found.output
    runs = {key.split("/")[1] for key in DirectoryStore(place / "store").list("runs/")}
    assert runs == {"r1"}
