"""Whole runs of encoder-decoders, and of classifiers with several labels or a number a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import evaluate
from jobs.plan.preflight import validate_run
from jobs.spec.load import dump_spec, validate_spec
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore
from jobs.tools.load_adapter import load_adapted_model
from tests.tiny import (
    label_rows,
    labelled_rows,
    merge_spec,
    pair_rows,
    tiny_encoder,
    tiny_encoder_decoder,
    tiny_spec,
)
from tests.training_runs import TrainingCase, TrainingResult, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

MANY = [["warm"], ["cold", "wet"], [], ["wet"], ["warm", "wet"], ["cold"]] * 2
NUMBERS = [1.5, -2.0, 0.25, 3.0, 4.5, -0.5] * 2
CLASSIFY = {"task": "sequence-classification"}
CASES: dict[str, dict[str, Any]] = {
    "t5": {"model": {"path": "t5"}},
    "bart": {"model": {"path": "bart"}, "method": {"kind": "lora"}},
    "bart-full": {"model": {"path": "bart"}, "method": {"kind": "full"}, "train": {"steps": 3}},
    "t5-classes": {"model": {"path": "t5", **CLASSIFY}, "data": {"train": "one"}},
    "bart-classes": {
        "model": {"path": "bart", **CLASSIFY},
        "data": {"train": "one"},
        "method": {"kind": "lora"},
    },
    "many": {"model": {"path": "bert", **CLASSIFY}, "data": {"train": "many", "labels": "many"}},
    "number": {
        "model": {"path": "bert", **CLASSIFY},
        "data": {"train": "number", "labels": "number"},
        "method": {"kind": "lora"},
    },
    "number-full": {
        "model": {"path": "bert", **CLASSIFY},
        "data": {"train": "number", "labels": "number"},
        "method": {"kind": "full"},
        "train": {"steps": 3},
    },
}
SHARDED, SHARDED_LONG = ("t5", "many"), ("bart", "bart-classes")
SAMPLED = ("t5", "bart-full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    for kind in ("t5", "bart"):
        tiny_encoder_decoder(path / kind, kind)
    tiny_encoder(path / "bert")
    pair_rows(path / "pairs.jsonl", 11)
    label_rows(path / "one.jsonl", 11)
    labelled_rows(path / "many.jsonl", MANY[:11])
    labelled_rows(path / "number.jsonl", NUMBERS[:11])
    return path


def make_spec(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    spec = tiny_spec(
        folder,
        name=name,
        model={"task": "seq2seq"},
        data={"format": "auto", "train": "pairs"},
        train={"checkpoint_every": None, "batch_size": 4, "micro_batch_size": 2},
    )
    spec = merge_spec(merge_spec(spec, CASES[name]), changes)
    rows = str(folder / f"{spec['data']['train']}.jsonl")
    spec["data"] |= {"train": rows, "eval": rows}
    spec["model"]["path"] = str(folder / spec["model"]["path"])
    return spec


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, TrainingResult]:
    cases = [TrainingCase(name, make_spec(folder, name), samples=name in SAMPLED) for name in CASES]
    return train_all(cases, 1)


def get_store(folder: Path) -> Any:
    return open_store(f"file://{folder / 'store'}")


def load_stock(folder: Path, name: str, scratch: Path) -> Any:
    """The model of stock transformers and PEFT, without a line of ours."""
    import transformers
    from peft import PeftModel

    manifest = resolve_adapter(get_store(folder), name)
    pulled = pull(get_store(folder), manifest, scratch / "adapter")
    spec = make_spec(folder, name)
    auto, options = transformers.AutoModelForSeq2SeqLM, {}
    if spec["model"]["task"] != "seq2seq":
        auto = transformers.AutoModelForSequenceClassification
        value = json.loads((pulled / "labels.json").read_text())
        names = value["labels"] if isinstance(value, dict) else value
        options = {"num_labels": len(names), "pad_token_id": 0}
    base = auto.from_pretrained(spec["model"]["path"], **options)
    return PeftModel.from_pretrained(base, str(pulled)).eval(), pulled


@pytest.mark.parametrize("name", CASES)
def test_a_run_learns_and_leaves_its_base_alone(name: str, results: dict[str, TrainingResult]):
    result = results[name]
    before, after = result.evaluations["before"]["loss"], result.evaluations["end"]["loss"]
    assert after < before
    assert result.base_untouched == ("full" not in name)


@pytest.mark.parametrize("name", ["t5", "bart", "t5-classes", "bart-classes", "many", "number"])
def test_stock_peft_has_the_logits_of_our_merged_model(
    name: str, results: dict[str, TrainingResult], folder: Path, tmp_path: Path
):
    import torch

    ours = load_adapted_model(get_store(folder), name, merged=True)
    stock, pulled = load_stock(folder, name, tmp_path)
    inputs = dict(
        ours.tokenizer(["the cup 1 is warm", "a boat"], padding=True, return_tensors="pt")
    )
    if ours.task == "seq2seq":
        assert (
            json.loads((pulled / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
        )
        inputs["decoder_input_ids"] = torch.tensor([[3, 40, 41], [3, 50, 51]])
    with torch.no_grad():
        logits = [model(**inputs).logits for model in (ours.model, stock)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["t5", "bart-full", "bart-classes", "many", "number", "number-full"]
)
def test_an_evaluation_of_the_committed_adapter_has_the_metrics_of_its_run(
    name: str, results: dict[str, TrainingResult], folder: Path, capsys: pytest.CaptureFixture[str]
):
    store, spec = f"file://{folder / 'store'}", make_spec(folder, name)
    RunStore(get_store(folder), name).write_text(SPEC, dump_spec(validate_spec(spec)))
    rows = spec["data"]["eval"]
    arguments = ["--adapter", name, "--store", store, "--data", rows, "--json"]
    assert evaluate.main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)
    expected = results[name].evaluations["end"]
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_labels_of_an_adapter_say_what_is_predicted(
    results: dict[str, TrainingResult], folder: Path, tmp_path: Path
):
    for name, names, problem in (
        ("many", ["cold", "warm", "wet"], "multi_label_classification"),
        ("number", ["value"], "regression"),
    ):
        manifest = resolve_adapter(get_store(folder), name)
        pulled = pull(get_store(folder), manifest, tmp_path / name)
        saved = {"labels": names, "problem_type": problem}
        assert json.loads((pulled / "labels.json").read_text()) == saved
        model = load_adapted_model(get_store(folder), name).model
        assert model.config.problem_type == problem
        assert list(model.config.id2label.values()) == names
    manifest = resolve_adapter(get_store(folder), "number-full")
    config = json.loads(
        (pull(get_store(folder), manifest, tmp_path / "full") / "config.json").read_text()
    )
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "value"}


def test_a_full_model_has_every_weight_of_its_base_and_generates(
    results: dict[str, TrainingResult], folder: Path, tmp_path: Path
):
    import torch
    import transformers
    from safetensors import safe_open

    manifest = resolve_adapter(get_store(folder), "bart-full")
    pulled = pull(get_store(folder), manifest, tmp_path / "full")
    names = []
    for path in (folder / "bart", pulled):
        with safe_open(path / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]
    stock, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        pulled, output_loading_info=True
    )
    assert not any(info.values())
    assert stock.model.encoder.embed_tokens.weight is stock.lm_head.weight
    with torch.no_grad():
        assert stock.generate(torch.tensor([[40, 41, 3]]), max_new_tokens=3).shape[0] == 1


@pytest.mark.parametrize("names", [SHARDED, pytest.param(SHARDED_LONG, marks=pytest.mark.long)])
def test_two_workers_have_the_losses_of_one_also_with_the_base_in_shards(
    results: dict[str, TrainingResult], folder: Path, names: tuple[str, ...]
):
    ways = ("replicate", "cluster")
    cases = [
        TrainingCase(
            f"{name}-{way}",
            make_spec(folder, name, cluster={"sharding": way}) | {"name": f"{way}-run"},
            samples=name in SAMPLED,
        )
        for name in names
        for way in ways
    ]
    two = train_all(cases, 2)
    for name in names:
        for way in ways:
            result = two[f"{name}-{way}"]
            assert result.losses == pytest.approx(results[name].losses, rel=1e-3), (name, way)
            end = results[name].evaluations["end"]
            assert result.evaluations["end"] == pytest.approx(end, rel=1e-3), (name, way)
            assert result.base_untouched


def test_a_tuned_head_for_another_kind_of_labels_is_replaced_and_told(
    results: dict[str, TrainingResult], folder: Path, tmp_path: Path
):
    manifest = resolve_adapter(get_store(folder), "number-full")
    pull(get_store(folder), manifest, folder / "tuned")
    changes = {"model": {"path": "tuned"}}
    kept = validate_run(validate_spec(make_spec(folder, "number", **changes))).plan
    assert not kept.new_head and any("it predicts a number" in note for note in kept.notes)
    other = validate_run(validate_spec(make_spec(folder, "many", **changes))).plan
    assert other.new_head and any("was trained for a number" in note for note in other.notes)
