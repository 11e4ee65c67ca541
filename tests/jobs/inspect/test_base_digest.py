"""A base is what is loaded from its folder: a message names the file that differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from jobs.inspect.base_digest import (
    digest_base,
    digest_weights,
    find_base_change,
    list_base_files,
)
from jobs.inspect.file_stamps import stamp_files
from jobs.store.adapters.manifest import BaseFile, BaseRecord
from jobs.tools import chat
from slora.formats.peft import LoraAdapter, write_lora
from tests.jobs.retrain.builders import committed
from tests.tiny import chat_rows, hollow_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return hollow_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("chat_template.jinja", "differs"),
        ("tokenizer.json", "differs"),
        ("model.safetensors", "differs"),
        ("generation_config.json", "was added"),
    ],
)
def test_the_file_that_differs_is_named(name: str, change: str, base: Path):
    (base / "tokenizer.json").write_text("{}")
    record = BaseRecord(path="model", **vars(digest_base(base)))
    assert find_base_change(record, base) is None
    (base / name).write_bytes(b"changed")
    assert find_base_change(record, base) == f"{name} {change}"


def test_a_file_that_is_missing_is_named_and_the_others_are_counted(base: Path):
    record = BaseRecord(path="model", **vars(digest_base(base)))
    (base / "chat_template.jinja").unlink()
    (base / "config.json").write_text("{}")
    assert find_base_change(record, base) == ("chat_template.jinja is missing (and 1 more)")


def test_a_record_of_an_earlier_release_is_compared_by_its_rule(base: Path):
    record = BaseRecord(path="model", digest=digest_weights(base))
    (base / "chat_template.jinja").write_text("changed")
    assert find_base_change(record, base) is None
    (base / "config.json").write_text("{}")
    assert f"not {record.digest[:12]}" in (find_base_change(record, base) or "")


def test_a_record_whose_digest_is_not_that_of_its_files_fits_no_folder(base: Path):
    files = digest_base(base).files
    record = BaseRecord(path="model", digest="0" * 64, files=files)
    assert find_base_change(record, base) is not None


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\nb", "x" * 600])
def test_a_recorded_file_has_a_name_below_the_folder(name: str):
    with pytest.raises(ValidationError):
        BaseFile(name=name, size=1, sha256="0" * 64)


def test_a_change_of_the_template_changes_the_stamps_that_a_job_compares(base: Path):
    before = stamp_files(list_base_files(base))
    (base / "chat_template.jinja").write_text("{{ messages }} changed")
    assert stamp_files(list_base_files(base)) != before


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json"])
def test_a_changed_base_is_refused_at_load(name: str, tmp_path: Path, base: Path, capsys):
    for rows in ("train.jsonl", "eval.jsonl"):
        chat_rows(tmp_path / rows, 8)
    factors = {"model.layers.0.mlp.up_proj": (torch.zeros(2, 8), torch.zeros(16, 2))}
    write_lora(tmp_path / "one", LoraAdapter(factors, 2.0, 2, "base", "causal-lm"))
    committed(tmp_path, tmp_path / "one")
    (base / name).write_text("{% set evil = 1 %}")
    words = ["--adapter", "tiny", "--store", f"file://{tmp_path / 'store'}", "--prompt", "hi"]
    assert chat.main([*words, "--base", str(base)]) == 2
    text = capsys.readouterr().err
    assert "is not the base of tiny@v1" in text and f"{name} " in text
