"""Tasks that do not fit a model, and labels that do not fit a task: refused with what to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.plan.plan_subject import describe_run, plan_run
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from tests.tiny import (
    chat_rows,
    hollow_model,
    label_rows,
    labelled_rows,
    pair_rows,
    tiny_encoder_decoder,
    tiny_spec,
)

SEQ2SEQ, CLASSIFY = {"task": "seq2seq"}, {"task": "sequence-classification"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    hollow_model(path / "llama")
    hollow_model(path / "bert", says={"architectures": ["BertModel"], "model_type": "bert"})
    for kind in ("t5", "bart"):
        tiny_encoder_decoder(path / kind, kind)
    pair_rows(path / "pairs.jsonl", 8)
    chat_rows(path / "chat.jsonl", 8)
    label_rows(path / "one.jsonl", 8)
    labelled_rows(path / "many.jsonl", [["a"], ["b"]] * 4)
    labelled_rows(path / "number.jsonl", [1, 2] * 4)
    return path


def make_spec(folder: Path, base: str, rows: str, **changes: Any) -> dict[str, Any]:
    task, data = changes.pop("model", {}), changes.pop("data", {})
    return tiny_spec(
        folder,
        model={"path": str(folder / base), **task},
        data={"train": str(folder / f"{rows}.jsonl"), "format": "auto", **data},
        **changes,
    )


def plan(folder: Path, base: str, rows: str, **changes: Any) -> Any:
    return validate_run(validate_spec(make_spec(folder, base, rows, **changes))).plan


BAD: dict[str, tuple[tuple[str, str, dict[str, Any]], str]] = {
    "T5 as a language model": (
        ("t5", "pairs", {}), "model.task: .* is an encoder-decoder.* Use model.task: seq2seq"),
    "BART as a language model": (("bart", "pairs", {}), "Use model.task: seq2seq"),
    "a Llama as seq2seq": (
        ("llama", "pairs", {"model": SEQ2SEQ}),
        "not an encoder-decoder.*Use model.task: causal-lm"),
    "a BERT as seq2seq": (
        ("bert", "pairs", {"model": SEQ2SEQ}),
        "Use model.task: sequence-classification, or a model"),
    "conversations": (
        ("t5", "chat", {"model": SEQ2SEQ}),
        "an encoder-decoder answers a prompt; the row has 'mess"),
    "a format of conversations": (
        ("t5", "chat", {"model": SEQ2SEQ, "data": {"format": "chat"}}),
        "chat does not fit seq2seq. Use prompt-completion or alpaca"),
    "packed pairs": (
        ("t5", "pairs", {"model": SEQ2SEQ, "data": {"packing": True}}),
        "data.packing: true, but an encoder-decoder reads one prompt at a time"),
    "more tokens than positions": (
        ("bart", "pairs", {"model": SEQ2SEQ, "data": {"max_length": 200}}),
        "model's 128 positions"),
    "labels of a language model": (
        ("llama", "chat", {"data": {"labels": "many"}}),
        "data.labels: many, but causal-lm rows have no labels"),
    "one label where a list is meant": (
        ("bert", "one", {"model": CLASSIFY, "data": {"labels": "many"}}),
        r"one.jsonl:1: label is 'warm', not a list"),
    "a name where a number is meant": (
        ("bert", "one", {"model": CLASSIFY, "data": {"labels": "number"}}),
        "one.jsonl:1: label is 'warm', not a number"),
    "a list where a name is meant": (
        ("bert", "many", {"model": CLASSIFY}), "many.jsonl:1.*use data.labels: many"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_with_what_to_use(folder: Path, case: str):
    (base, rows, changes), message = BAD[case]
    with pytest.raises(InputError, match=message):
        plan(folder, base, rows, **changes)


@pytest.mark.parametrize(
    ("metric", "labels"), [("eval_accuracy", "many"), ("eval_f1_micro", "number")]
)
def test_a_metric_that_is_not_reported_is_refused(folder: Path, metric: str, labels: str):
    spec = make_spec(folder, "bert", "many", model=CLASSIFY, data={"labels": labels})
    section = {"metric": metric, "samples": 2, "space": {"method.rank": {"choice": [1, 2]}}}
    for changes in ({"search": section}, {"retrain": {"gate": {"metric": metric}}}):
        with pytest.raises(InputError, match=f"data.labels: {labels} does not report {metric}"):
            validate_spec({**spec, **changes})


def test_clients_cannot_be_dealt_by_a_label_that_rows_do_not_have(folder: Path):
    spec = make_spec(folder, "bert", "many", model=CLASSIFY, data={"labels": "many"})
    spec["train"].pop("steps")
    section = {"rounds": 2, "local_steps": 1, "clients": 2, "clients_per_round": 2}
    section |= {"partition": "dirichlet"}
    with pytest.raises(InputError, match=r"data.labels: many have no single one. Use iid"):
        validate_spec({**spec, "federation": section})


def test_encoder_and_decoder_are_adapted_and_the_output_is_not(folder: Path):
    for base in ("t5", "bart"):
        result = plan(folder, base, "pairs", model=SEQ2SEQ)
        assert {"encoder", "decoder"} <= {
            part for name in result.targets for part in name.split(".")
        }
        assert not any("lm_head" in name for name in result.targets)
        assert result.head == 0 and not result.packing.is_on
        assert "one prompt at a time" in result.packing.reason


@pytest.mark.parametrize(
    ("rows", "labels", "names"),
    [
        ("one", "one", ("cold", "warm")),
        ("many", "many", ("a", "b")),
        ("number", "number", ("value",)),
    ],
)
def test_the_head_has_a_row_for_each_label_and_one_for_a_number(
    folder: Path, rows: str, labels: str, names: tuple[str, ...]
):
    for base, width, inner in (("bert", 8, 0), ("bart", 32, 32 * 32 + 32)):
        result = plan(folder, base, rows, model=CLASSIFY, data={"labels": labels})
        assert result.labels == names and result.head == inner + len(names) * (width + 1)


def test_all_logits_are_planned_for_a_model_that_computes_a_loss_of_its_own(folder: Path):
    micro, length = 2048, 64
    train = {"batch_size": micro, "micro_batch_size": micro}
    raw = make_spec(folder, "bart", "pairs", model=SEQ2SEQ, train=train)
    validated = validate_run(validate_spec(raw))
    model = validated.model
    own = replace(model, description=replace(model.description, plain_loss="has its own loss"))
    logits = []
    for described in (model, own):
        subject = describe_run(
            validated.spec, validated.plan.dtype, described, validated.train_scan, None
        )
        planned, faults = plan_run(validated.spec, subject)
        assert planned and planned.estimate and not faults
        logits.append(planned.estimate.selected.memory.worst.lines["logits"])
    assert logits[1] == 3 * 4 * micro * length * model.config["vocab_size"]
    assert logits[0] < logits[1] / 2
