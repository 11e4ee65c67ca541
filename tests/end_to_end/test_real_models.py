"""Real models and data: stock PEFT computes the same as we do with an adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from jobs.spec.load import load_spec
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.open import open_store
from jobs.tools.load_adapter import load_adapted_model
from jobs.train.model.base_model import load_model
from jobs.train.model.tokenizer import load_tokenizer
from tests.tiny import merge_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
TEXTS = ["What do you know about computers?", "the new graphics card renders windows slowly"]


def train_example(tmp_path: Path, example: str, **changes: Any) -> Path:
    """Train a few steps of an example, and return the folder of the store."""
    spec = load_spec(ROOT / "jobs" / "examples" / example).model_dump(mode="json")
    for section, key in (("model", "path"), ("data", "train"), ("data", "eval")):
        spec[section][key] = str(ROOT / spec[section][key])
    # The comparisons below are exact, whatever this machine computes fastest.
    fixed = {"model": {"dtype": "float32"}, "store": f"file://{tmp_path / 'store'}"}
    spec = merge_spec(spec, {**fixed, **changes})
    outcome = train_all([TrainingCase("run", spec)], 1)["run"]
    assert outcome.base_untouched
    assert outcome.files
    return tmp_path / "store"


@pytest.fixture(scope="module")
def chat_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    short = {"steps": 2, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 4e-3}
    folder = tmp_path_factory.mktemp("chat")
    rows = (ROOT / ".cache/data/chat.eval.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (folder / "eval.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    data = {"eval": str(folder / "eval.jsonl")}
    method = {"sparse_share": 0.5}
    return train_example(folder, "chat.yaml", train=short, data=data, method=method)


@pytest.fixture(scope="module")
def sorter_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    short = {"steps": 6, "batch_size": 8, "micro_batch_size": 4}
    folder = tmp_path_factory.mktemp("newsgroups")
    rows = (ROOT / ".cache/data/newsgroups.eval.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "eval.jsonl").write_text("\n".join(rows[:24]) + "\n", encoding="utf-8")
    data = {"eval": str(folder / "eval.jsonl")}
    return train_example(folder, "newsgroups.yaml", train=short, data=data)


def compute_logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        # Texts have different lengths: compare the logits of the last token.
        return torch.cat(
            [
                model(**tokenizer(text, return_tensors="pt")).logits.reshape(1, -1)[:, -1000:]
                if model.config.model_type == "bert"
                else model(**tokenizer(text, return_tensors="pt")).logits[:, -1]
                for text in TEXTS
            ]
        )


@pytest.mark.parametrize(
    ("fixture", "name", "task"),
    [
        pytest.param("chat_store", "chat", "causal-lm", id="causal LM"),
        pytest.param(
            "sorter_store",
            "newsgroups",
            "sequence-classification",
            id="classifier",
            marks=pytest.mark.long,
        ),
    ],
)
def test_stock_peft_and_the_merged_model_give_our_logits(request, tmp_path, fixture, name, task):
    store = open_store(f"file://{request.getfixturevalue(fixture)}")
    ours = load_adapted_model(store, name)
    manifest = resolve_adapter(store, name)
    folder = pull(store, manifest, tmp_path / "pulled")
    expected = compute_logits(ours.model, ours.tokenizer)

    base = load_model(manifest.base.path, task=task, dtype="float32", labels=ours.labels, seed=7)
    untrained = compute_logits(base, ours.tokenizer)
    stock = PeftModel.from_pretrained(base, folder).eval()
    assert (compute_logits(stock, ours.tokenizer) - expected).abs().max() <= 1e-4
    merged = load_adapted_model(store, name, merged=True)
    assert (compute_logits(merged.model, ours.tokenizer) - expected).abs().max() <= 1e-4
    # The adapter changes the model, so the comparisons above mean something.
    assert (untrained - expected).abs().max() > 1e-2


def test_stock_peft_merges_to_the_same_model_as_ours(sorter_store, tmp_path):
    store = open_store(f"file://{sorter_store}")
    manifest = resolve_adapter(store, "newsgroups")
    folder = pull(store, manifest, tmp_path / "pulled")
    ours = load_adapted_model(store, "newsgroups", merged=True)
    base = load_model(
        manifest.base.path,
        task="sequence-classification",
        dtype="float32",
        labels=ours.labels,
    )
    stock = PeftModel.from_pretrained(base, folder).merge_and_unload()
    theirs = dict(stock.named_parameters())
    for name, tensor in ours.model.named_parameters():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run_slora(*arguments: str) -> subprocess.CompletedProcess[str]:
        slora = str(Path(sys.executable).with_name("slora"))
        return subprocess.run(
            [slora, *arguments], capture_output=True, text=True, timeout=240, check=False
        )

    return run_slora


def test_chat_streams_a_response(run, chat_store):
    store = f"file://{chat_store}"
    result = run("chat", "--adapter", "chat", "--store", store, "--prompt", "Hello!",
               "--max-tokens", "8")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.long
def test_evaluate_measures_what_the_run_measured_also_without_the_files_of_the_run(
    run, sorter_store
):
    store = f"file://{sorter_store}"
    data = str(sorter_store.parent / "eval.jsonl")
    arguments = ["evaluate", "--adapter", "newsgroups", "--data", data, "--store", store, "--json"]
    result = run(*arguments)
    assert result.returncode == 2
    assert "the files of run run are not in the store" in result.stderr
    result = run(*arguments, "--max-length", "96")
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    expected = resolve_adapter(open_store(store), "newsgroups").evaluation["end"]
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert measured["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-9)


def test_adapters_are_listed_pulled_verified_and_merged(run, sorter_store, tmp_path):
    store = f"file://{sorter_store}"
    assert "newsgroups@v1" in run("adapters", "list", "--store", store).stdout
    listing = run("adapters", "show", "newsgroups", "--store", store, "--json")
    assert json.loads(listing.stdout)["kind"] == "slora"
    assert run("adapters", "verify", "newsgroups", "--store", store).returncode == 0
    pulled = run("adapters", "pull", "newsgroups", str(tmp_path / "to"), "--store", store)
    assert pulled.returncode == 0
    assert (tmp_path / "to" / "adapter_config.json").exists()
    merged = run("adapters", "merge", "newsgroups", str(tmp_path / "merged"), "--store", store)
    assert merged.returncode == 0, merged.stderr
    merged_model = load_model(
        str(tmp_path / "merged"),
        task="sequence-classification",
        dtype="float32",
        labels=load_adapted_model(open_store(store), "newsgroups").labels,
    )
    ours = load_adapted_model(open_store(store), "newsgroups")
    tokenizer = load_tokenizer(str(tmp_path / "merged"))
    assert (
        compute_logits(merged_model, tokenizer) - compute_logits(ours.model, tokenizer)
    ).abs().max() <= 1e-4


def test_verify_detects_a_changed_byte(run, sorter_store):
    file = sorter_store / "adapters" / "newsgroups" / "v1" / "adapter_model.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = run("adapters", "verify", "newsgroups", "--store", f"file://{sorter_store}")
        assert result.returncode == 1
        assert "adapter_model.safetensors" in result.stdout + result.stderr
    finally:
        file.write_bytes(content)
