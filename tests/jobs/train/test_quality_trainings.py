"""The trainings of the quality benchmark on a tiny model: one process, one base, PEFT beside."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slora.layers.lora import init_factors
from tests.benchmarks.quality.corpora import CORPORA, Corpus, MissingData, write_rows
from tests.benchmarks.quality.peft_training import MasterWeights, PeftTraining
from tests.benchmarks.quality.setting import Setting, find_refusal
from tests.benchmarks.quality.shared_base import ChangedBase, SharedBases, digest_weights
from tests.benchmarks.quality.trainers import Bench
from tests.benchmarks.quality.training import describe_setting, extract_curve
from tests.benchmarks.quality.variants import (
    BY_NAME,
)
from tests.tiny import chat_rows, tiny_chat_model

NEWS, CHAT = CORPORA["newsgroups"], CORPORA["chat"]
LORA_R4, SPARSE = BY_NAME["lora r4"], BY_NAME["sparse"]


# Trainings of a tiny model


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another cost seconds where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_tiny_corpus(folder: Path) -> Corpus:
    for name, count in (("train", 24), ("test", 4)):
        chat_rows(folder / f"{name}.jsonl", count)
    return replace(
        CHAT, train=str(folder / "train.jsonl"), test=str(folder / "test.jsonl"),
        model=str(folder / "model"), validation_rows=4, test_rows=4, max_length=64, steps=4,
        batch_size=2, eval_every=2, dtype="float32", density=0.1,
    )  # fmt: skip


def test_rows_are_split_once_and_named_by_their_content(tmp_path):
    corpus = make_tiny_corpus(tmp_path)
    (tmp_path / "model").mkdir()
    splits = write_rows(corpus, tmp_path / "rows")
    assert splits == write_rows(corpus, tmp_path / "rows")
    texts = {split: Path(path).read_text().splitlines() for split, path in splits.items()}
    assert len(texts["validation"]) == 4 and not {*texts["train"]} & {*texts["validation"]}
    with pytest.raises(MissingData, match=r"python infra/demo/prepare\.py chat"):
        write_rows(replace(corpus, test=str(tmp_path / "none.jsonl")), tmp_path / "rows")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # PEFT's SHiRA.
def test_a_process_trains_one_setting_after_the_other_from_the_same_bits(tmp_path):
    tiny_chat_model(tmp_path / "model")
    corpus = make_tiny_corpus(tmp_path)
    splits = write_rows(corpus, tmp_path / "rows")
    bench, stores = Bench(torch.device("cpu")), itertools.count()

    def train(name: str) -> dict[str, Any]:
        setting = Setting(corpus, BY_NAME[name], {"adapter": 1e-2}, 0)
        figures = bench.train(setting, splits, f"file://{tmp_path / f'store{next(stores)}'}")
        json.dumps({**describe_setting(setting, splits), **figures})
        return figures

    first, sparse = train("lora r4"), train("sparse")
    again, theirs, shira = train("lora r4"), train("peft lora r4"), train("peft shira r4")
    assert again["curve"] == first["curve"] and again["test"] == first["test"]
    assert [step for step, _, _ in first["curve"]] == [0, 2, 4]
    assert theirs["trained"] == first["trained"] == shira["trained"]
    assert theirs["tokens"] == first["tokens"] == sparse["tokens"]
    assert sparse["bytes"] == 4 * 4 * sparse["trained"]
    start = first["curve"][0][2]
    for figures in (first, sparse, theirs, shira):
        assert figures["validation"] < start


@pytest.mark.usefixtures("one_thread")
def test_pefts_layers_in_a_plain_loop_end_where_ours_do_from_the_same_factors(tmp_path):
    tiny_chat_model(tmp_path / "model")
    request, corpus = make_request(tmp_path), make_tiny_corpus(tmp_path)
    splits = write_rows(corpus, tmp_path / "rows")
    setting = Setting(corpus, LORA_R4, {"adapter": 1e-2}, 0)
    ours = Bench(torch.device("cpu")).train(setting, splits, f"file://{tmp_path / 'ours'}")
    base = SharedBases().load(request, None, make_context())  # type: ignore[arg-type]
    theirs = replace(setting, variant=BY_NAME["peft lora r4"])
    training = PeftTraining(theirs, request.with_packing(base.packing), base, torch.device("cpu"))
    for name in base.targets:
        layer = training.model.get_submodule(name)
        shape = (layer.out_features, layer.in_features)
        a_RI, _ = init_factors(seed=0, name=name, shape=shape, rank=4)
        layer.lora_A["default"].weight.data.copy_(a_RI)
    metrics, _ = training.run()
    curve = extract_curve(metrics, "loss")
    assert [step for step, _, _ in curve] == [2, 4]
    for (_, tokens, loss), (_, our_tokens, our_loss) in zip(curve, ours["curve"][1:], strict=True):
        assert tokens == our_tokens
        assert loss == pytest.approx(our_loss, abs=2e-4)
    assert abs(ours["curve"][0][2] - ours["curve"][-1][2]) > 0.05


def test_a_base_that_a_training_has_changed_is_noticed(tmp_path, monkeypatch):
    tiny_chat_model(tmp_path / "model")
    request = make_request(tmp_path)
    bases = SharedBases()
    copy = bases.load(request, None, make_context())  # type: ignore[arg-type]
    digest = digest_weights(copy.model)
    with torch.no_grad():
        next(copy.model.parameters()).zero_()
    again = bases.load(request, None, make_context())  # type: ignore[arg-type]
    assert digest_weights(again.model) == digest != digest_weights(copy.model)
    assert again.targets.keys() == copy.targets.keys()
    assert all(again.model.get_submodule(name) is layer for name, layer in again.targets.items())
    ((original, _),) = bases._bases.values()
    with torch.no_grad():
        next(original.model.parameters()).zero_()
    with pytest.raises(ChangedBase, match="not those of the file"):
        bases.load(request, None, make_context())  # type: ignore[arg-type]


def make_request(folder: Path) -> Any:
    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec

    corpus = make_tiny_corpus(folder)
    setting = Setting(corpus, LORA_R4, {"adapter": 1e-3}, 0)
    splits = write_rows(corpus, folder / "rows")
    spec = validate_spec(setting.make_spec(splits, f"file://{folder / 'store'}"))
    return validate_run(spec).make_request("quality")


def make_context() -> Any:
    from jobs.train.comm.collectives import WorkerContext

    return WorkerContext(0, 1, torch.device("cpu"))


def test_the_head_has_a_rate_of_its_own_and_is_stepped_in_float32():
    adapter = torch.nn.Parameter(torch.zeros(2))
    head = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    weights = MasterWeights([adapter, head], {id(head)}, {"adapter": 1e-3, "head": 1e-1})
    adapter.grad, head.grad = torch.ones(2), torch.ones(2, dtype=torch.bfloat16)
    weights.step(1.0, max_norm=1.0)
    assert adapter.tolist() == pytest.approx([-1e-3] * 2, rel=1e-3)
    assert head.tolist() == pytest.approx([0.9] * 2, rel=1e-2)
    assert adapter.grad is None


def test_a_refusal_names_the_key():
    variant = replace(LORA_R4, method={"kind": "lora", "rnk": 4})
    refusal = find_refusal(Setting(CHAT, variant, {"adapter": 1e-3}, 0))
    assert refusal is not None and "method.rnk: unknown key" in refusal
