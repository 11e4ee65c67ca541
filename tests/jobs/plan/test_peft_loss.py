"""A plan says that stock PEFT can't hold its adapter, before the run stores it otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.inspect.model_files import ModelFiles, read_model
from jobs.plan.peft_loss import find_peft_note
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from tests.model_kinds import save_model
from tests.tiny import tiny_spec


def make_spec(folder: Path, **method: Any) -> RunSpec:
    return validate_spec(tiny_spec(folder, method=method))


def make_model(kind: str, folder: Path) -> ModelFiles:
    save_model(kind, folder / "model")
    (folder / "model" / "tokenizer.json").write_text("{}")
    model, faults = read_model(make_spec(folder).model)
    assert model and not faults
    return model


def test_a_lora_that_peft_drops_a_part_of_has_a_note(tmp_path: Path):
    # PEFT takes the gate of the shared expert for one of the fused experts.
    model = make_model("router bias", tmp_path)
    targets = tuple(model.linears)
    note = find_peft_note(make_spec(tmp_path), model, targets, ())
    assert "PEFT" in note and "compact form" in note
    assert not find_peft_note(make_spec(tmp_path, kind="sparse"), model, targets, ())
    attention = tuple(name for name in targets if name.endswith("o_proj"))
    assert not find_peft_note(make_spec(tmp_path), model, attention, ())


def test_a_lora_that_peft_holds_has_none(tmp_path: Path):
    model = make_model("llama", tmp_path)
    spec = make_spec(tmp_path, train_tokens=["<tool>"])
    assert not find_peft_note(spec, model, tuple(model.linears), ())
