"""A tuned classifier starts from its own head, whatever order its labels have in the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.inspect.base_digest import digest_base
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from jobs.store.adapters.operations import scan_adapters
from jobs.store.open import open_store
from tests.tiny import label_rows, tiny_encoder, tiny_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

NAMES = ("warm", "cold", "mild")
"""Neither sorted nor in the order of the rows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    path = tmp_path_factory.mktemp("tuned")
    base = tiny_encoder(path / "base")
    torch.manual_seed(5)
    model = BertForSequenceClassification.from_pretrained(
        base, id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}
    )
    model.classifier.weight.data.mul_(200)
    model.save_pretrained(path / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(path / "model")
    label_rows(path / "train.jsonl", 24, ("cold", "warm", "mild", "warm"))
    label_rows(path / "other.jsonl", 24, ("hot", "wet"))
    return path


def make_spec(folder: Path, **changes: Any) -> dict[str, Any]:
    rows = str(folder / "train.jsonl")
    return tiny_spec(
        folder,
        model={"task": "sequence-classification"},
        data={"train": rows, "eval": rows, "format": "classification"} | changes,
        method={"kind": "lora"},
        train={"steps": 1},
    )


def measure_stock(folder: Path) -> tuple[float, float]:
    """The mean loss and the accuracy of stock transformers, by the model's own label numbers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    losses, hits = [], []
    for line in (folder / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        number = model.config.label2id[row["label"]]
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits[0]
        losses.append(float(-logits.log_softmax(-1)[number]))
        hits.append(int(logits.argmax()) == number)
    return sum(losses) / len(losses), sum(hits) / len(hits)


def test_a_tuned_classifier_has_its_own_accuracy_before_the_training(folder: Path):
    result = train_all([TrainingCase("kept", make_spec(folder))], 1)["kept"]
    loss, accuracy = measure_stock(folder)
    before = result.evaluations["before"]
    assert before["accuracy"] == pytest.approx(accuracy)
    assert before["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_manifest_records_every_file_of_the_base(folder: Path):
    train_all([TrainingCase("recorded", make_spec(folder))], 1)
    store = open_store(f"file://{folder / 'store'}")
    [base] = {manifest.base.digest: manifest.base for manifest in scan_adapters(store)[0]}.values()
    present = digest_base(folder / "model")
    assert (base.digest, base.files) == (present.digest, present.files)
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {
        file.name for file in present.files
    }


def test_the_plan_tells_whether_the_head_is_kept(folder: Path):
    kept = validate_run(validate_spec(make_spec(folder))).plan
    assert kept.labels == NAMES and not kept.new_head
    assert any("own head is kept" in note for note in kept.notes)
    rows = str(folder / "other.jsonl")
    other = validate_run(validate_spec(make_spec(folder, train=rows, eval=rows))).plan
    assert other.labels == ("hot", "wet") and other.new_head
    assert any("the head is new" in note for note in other.notes)
