"""An export with rows: the LoRA that is best for the outputs of the layers on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.tools.export import main as export
from slora.formats.peft import LoraAdapter, read_adapter
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

KINDS = {
    "values": {"kind": "sparse"},
    "lora": {"kind": "lora", "rank": 6},
    "full": {"kind": "full"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exports")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 40)
    cases = [
        TrainingCase(name, tiny_spec(path, name=name, method=method, train={"steps": 6}))
        for name, method in KINDS.items()
    ]
    train_all(cases, 1)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_rows_make_an_export_keep_more_of_the_outputs(folder, tmp_path, capsys, name):
    rows = str(folder / "train.jsonl")
    words = ["--adapter", name, "--store", f"file://{folder / 'store'}", "--rank", "2", "--json"]
    reports = {}
    for norm, data in (("weights", []), ("outputs", ["--data", rows, "--max-length", "128"])):
        assert export([*words, *data, "--to", str(tmp_path / norm)]) == 0
        reports[norm] = json.loads(capsys.readouterr().out)
        assert reports[norm]["norm"] == norm
        assert isinstance(read_adapter(tmp_path / norm), LoraAdapter)
    assert reports["weights"]["output_share"] is None
    assert reports["weights"]["energy_share"] > reports["outputs"]["energy_share"]
    assert reports["outputs"]["output_share"] > reports["outputs"]["energy_share"]


def test_a_full_models_export_names_what_a_lora_cannot_hold(folder, tmp_path, capsys):
    words = ["--adapter", "full", "--store", f"file://{folder / 'store'}", "--rank", "2"]
    assert export([*words, "--to", str(tmp_path / "lora")]) == 0
    assert "not in it: " in capsys.readouterr().err
    adapter = read_adapter(tmp_path / "lora")
    assert isinstance(adapter, LoraAdapter)
    assert len(adapter.factors) == 14 and adapter.rank == 2


def test_a_share_of_the_energy_does_not_go_with_rows(tmp_path, capsys):
    words = ["--adapter", "any", "--energy", "0.9", "--data", "rows.jsonl"]
    assert export([*words, "--to", str(tmp_path / "lora")]) == 2
    assert "Use --rank, or remove --data" in capsys.readouterr().err
