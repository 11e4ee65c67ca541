"""A real llama.cpp server reads what we export: it answers as transformers does, token by token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.store.local import DirectoryStore
from jobs.tools.llama_cpp.gguf_model import write_gguf_model
from slora.formats.merge import Adapter, merge_adapter
from tests.jobs.llama_cpp.cases import (
    FAMILIES,
    TEXTS,
    commit_adapter,
    make_adapter,
    make_base,
    train_sentencepiece,
    train_tokenizer,
)
from tests.jobs.llama_cpp.fetch_llama import HOME
from tests.jobs.llama_cpp.test_gguf_files import run_export

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not HOME.exists(), reason="no llama.cpp: python -m tests.jobs.llama_cpp.fetch_llama"
    ),
]
SMOLLM2 = Path(__file__).parents[3] / ".cache/models/smollm2-135m-instruct"
TOLERANCE = 2e-3
"""Largest difference of a log-probability, in float32; both sum in their own order."""
EVERY = 1000
"""More probabilities than a small vocabulary has."""


@dataclass(frozen=True)
class LlamaAnswer:
    """What llama.cpp answered: tokens of texts, log-probabilities by token after each prompt."""

    tokens: list[list[int]]
    logprobs: list[dict[int, float]]
    generated: list[int]


def ask_llama(
    scratch: Path,
    model: Path,
    *,
    lora: Path | None = None,
    texts: Sequence[str] = (),
    prompts: Sequence[Sequence[int]] = (),
    probabilities: int = EVERY,
    generate: int = 0,
) -> LlamaAnswer:
    request = {
        "model": str(model), "lora": lora and str(lora), "texts": list(texts),
        "prompts": [list(tokens) for tokens in prompts], "probabilities": probabilities,
        "generate": generate,
    }  # fmt: skip
    (scratch / "request.json").write_text(json.dumps(request))
    script = Path(__file__).parent / "run_llama.py"
    paths = [str(scratch / "request.json"), str(scratch / "answer.json")]
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run(
        [sys.executable, str(script), *paths], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads((scratch / "answer.json").read_text())
    logprobs = [{int(token): p for token, p in row.items()} for row in answer["logprobs"]]
    return LlamaAnswer(answer["tokens"], logprobs, answer["generated"])


def compute_logprobs(base: Path, adapter: Adapter | None, ids: Sequence[int]) -> torch.Tensor:
    """Return transformers' log-probabilities after each token, `[tokens, vocabulary]`."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        merge_adapter(model, adapter)
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)


def assert_same(
    logprobs: Sequence[Mapping[int, float]], expected: torch.Tensor, lengths: Sequence[int]
) -> None:
    assert len(logprobs) == len(lengths)
    for row, length in zip(logprobs, lengths, strict=True):
        assert len(row) >= 20
        tokens = torch.tensor(list(row))
        ours = torch.tensor(list(row.values()))
        torch.testing.assert_close(ours, expected[length - 1][tokens], atol=TOLERANCE, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_with_its_adapter_as_in_transformers(family: str, tmp_path: Path):
    base, store = make_base(tmp_path / "base", family), DirectoryStore(tmp_path / "store")
    tokenizer = AutoTokenizer.from_pretrained(base)
    lora, values = make_adapter(base, "lora"), make_adapter(base, "sparse")
    for adapter, name in ((lora, "lora"), (values, "sparse")):
        commit_adapter(store, base, adapter, name, tmp_path / "folders")
    ids = tokenizer(TEXTS[0] + TEXTS[1])["input_ids"][:100]
    lengths = (1, 7, len(ids) // 2, len(ids))
    prompts = [ids[:length] for length in lengths]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    write_gguf_model(tmp_path / "base.gguf", model, tokenizer, name="base", dtype="float32")
    full = ("--as", "gguf", "--dtype", "float32")
    assert run_export(tmp_path, "lora", tmp_path / "lora", "--as", "gguf-lora") == 0
    assert run_export(tmp_path, "sparse", tmp_path / "merged", *full) == 0

    bare = ask_llama(tmp_path, tmp_path / "base.gguf", texts=TEXTS, prompts=prompts)
    assert bare.tokens == [tokenizer(text)["input_ids"] for text in TEXTS]
    expected = compute_logprobs(base, None, ids)
    assert_same(bare.logprobs, expected, lengths)
    lora_file = tmp_path / "lora/adapter.gguf"
    adapted = ask_llama(tmp_path, tmp_path / "base.gguf", lora=lora_file, prompts=prompts)
    expected_lora = compute_logprobs(base, lora, ids)
    assert (expected_lora - expected).abs().max() > 0.5
    assert_same(adapted.logprobs, expected_lora, lengths)
    merged = ask_llama(tmp_path, tmp_path / "merged/model.gguf", prompts=prompts)
    assert_same(merged.logprobs, compute_logprobs(base, values, ids), lengths)


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "qwen2", "sentencepiece"])
def test_texts_are_split_as_by_the_tokenizer(kind: str, tmp_path: Path):
    base = make_base(tmp_path / "base", "llama")
    tokenizer = train_sentencepiece() if kind == "sentencepiece" else train_tokenizer(kind)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    write_gguf_model(tmp_path / "m.gguf", model, tokenizer, name="base")
    answer = ask_llama(tmp_path, tmp_path / "m.gguf", texts=TEXTS)
    assert answer.tokens == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_a_real_model_with_an_adapter_answers_as_in_transformers(tmp_path: Path):
    store, adapter = DirectoryStore(tmp_path / "store"), make_adapter(SMOLLM2, "sparse")
    adapter.values.update({name: 0.05 * values for name, values in adapter.values.items()})
    commit_adapter(store, SMOLLM2, adapter, "chat", tmp_path / "folders")
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]
    full = ("--as", "gguf", "--dtype", "float32")
    assert run_export(tmp_path, "chat", tmp_path / "merged", *full) == 0
    model_file = tmp_path / "merged/model.gguf"
    texts = [text, *TEXTS]
    answer = ask_llama(
        tmp_path, model_file, texts=texts, prompts=[ids], probabilities=200, generate=12
    )
    assert answer.tokens == [tokenizer(words)["input_ids"] for words in texts]
    assert_same(answer.logprobs, compute_logprobs(SMOLLM2, adapter, ids), [len(ids)])
    both = [*ids, *answer.generated]
    greedy = compute_logprobs(SMOLLM2, adapter, both).argmax(-1).tolist()
    # It ends its answer by itself.
    assert answer.generated[-1] == tokenizer.eos_token_id
    assert greedy[len(ids) - 1 : -1] == answer.generated
