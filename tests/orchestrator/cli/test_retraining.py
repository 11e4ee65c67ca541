"""`slora plan` and `slora train` of a retraining: the plan, and no job without new data."""

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
def folder(tmp_path: Path) -> Path:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    chat_rows(tmp_path / "eval.jsonl", 4)
    return tmp_path


def _spec(folder: Path, section: dict[str, Any] | None = None, **spec: Any) -> str:
    return str(write_spec(folder / "retrain.yaml", raw_retrain(folder, section, **spec)))


def _invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})


def test_a_plan_without_an_adapter_starts_from_scratch(folder):
    values = json.loads(_invoke("plan", _spec(folder), "--json").stdout)
    assert values["retrain"] == "A retraining, which starts from scratch"
    assert [stage["name"] for stage in values["stages"]] == ["sparse", "low-rank"]


def test_a_plan_names_its_start_and_skips_the_sparse_stage(folder):
    committed(folder, lora_files(folder / "one"))
    output = _invoke("plan", _spec(folder)).output
    assert "starts from tiny@v1" in " ".join(output.split())
    values = json.loads(_invoke("plan", _spec(folder), "--json").stdout)
    assert [stage["name"] for stage in values["stages"]] == ["low-rank"]


def test_a_plan_from_a_missing_version_is_refused(folder):
    result = _invoke("plan", _spec(folder, {"start": "v7"}))
    assert result.exit_code == 2
    assert "tiny" in result.output


def test_a_plan_of_a_bad_section_is_refused_with_its_key(folder):
    result = _invoke("plan", _spec(folder, {"start": "soon"}))
    assert result.exit_code == 2
    assert "retrain.start: 'soon' is not allowed. Use current" in " ".join(result.output.split())


@pytest.mark.parametrize("json_too", [False, True])
def test_a_retraining_without_new_data_starts_no_job(json_too, folder):
    committed(folder, lora_files(folder / "one"))
    result = _invoke("train", _spec(folder), *(["--json"] if json_too else []))
    assert result.exit_code == 0
    assert "tiny@v1 was trained on these 8 rows" in " ".join(result.stdout.split())
    assert "Ray" not in result.output
    runs = {key.split("/")[1] for key in DirectoryStore(folder / "store").list("runs/")}
    assert runs == {"r1"}
