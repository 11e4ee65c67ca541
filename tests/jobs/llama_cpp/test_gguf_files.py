"""GGUF files: their keys, names and values by gguf's own reader, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs.store.local import DirectoryStore
from jobs.tools.export import main as export
from jobs.tools.llama_cpp.gguf_vocabulary import find_splitter
from slora.formats.merge import compute_update, merge_adapter
from tests.jobs.llama_cpp.cases import commit_adapter, make_adapter, make_base, train_tokenizer
from tests.tiny import tiny_gpt2

Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a LoRA and values, of a Llama."""
    path = tmp_path_factory.mktemp("gguf")
    base, store = make_base(path / "base", "llama"), DirectoryStore(path / "store")
    for kind in ("lora", "sparse"):
        commit_adapter(store, base, make_adapter(base, kind), kind, path / "folders")
    return path


def run_export(folder: Path, name: str, to: Path, *words: str) -> int:
    store = f"file://{folder / 'store'}"
    return export(["--adapter", name, "--store", store, "--to", str(to), *words])


def read_tensors(reader: gguf.GGUFReader) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: tensor.data for tensor in reader.tensors}


def read_keys(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def restore_rows(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return llama.cpp's rows of q or k in transformers' order, row by row."""
    width = len(rows) // heads
    order = [
        head * width + 2 * (at % (width // 2)) + at // (width // 2)
        for head in range(heads)
        for at in range(width)
    ]
    return rows[order]


def test_a_lora_has_llama_cpps_keys_names_and_order_of_rows(folder: Path, tmp_path: Path):
    assert run_export(folder, "lora", tmp_path / "out", "--as", "gguf-lora") == 0
    reader = gguf.GGUFReader(tmp_path / "out/adapter.gguf")
    keys, tensors = read_keys(reader), read_tensors(reader)
    assert (keys["general.type"], keys["adapter.type"]) == ("adapter", "lora")
    assert (keys["general.architecture"], keys["general.name"]) == ("llama", "lora@v1")
    assert keys["adapter.lora.alpha"] == 6.0
    assert len(tensors) == 2 * 2 * 7
    a, b = (tensors[f"blk.1.attn_q.weight.lora_{side}"] for side in "ab")
    assert a.shape == (3, 32) and a.dtype == np.float32
    update = compute_update(make_adapter(folder / "base", "lora"), Q)
    np.testing.assert_allclose(6.0 / 3 * restore_rows(b, 4) @ a, update, rtol=1e-5, atol=1e-6)


def test_values_become_a_lora_of_a_rank(folder: Path, tmp_path: Path, capsys):
    assert run_export(folder, "sparse", tmp_path / "out", "--as", "gguf-lora") == 2
    assert "--rank 16 or --energy 0.9" in capsys.readouterr().err
    words = ("--as", "gguf-lora", "--rank", "32", "--dtype", "float16")
    assert run_export(folder, "sparse", tmp_path / "out", *words) == 0
    tensors = read_tensors(gguf.GGUFReader(tmp_path / "out/adapter.gguf"))
    a, b = (tensors[f"blk.1.attn_q.weight.lora_{side}"].astype(np.float32) for side in "ab")
    assert tensors["blk.1.attn_q.weight.lora_a"].dtype == np.float16
    update = compute_update(make_adapter(folder / "base", "sparse"), Q)
    np.testing.assert_allclose(restore_rows(b, 4) @ a, update, atol=2e-3)


def test_a_model_has_all_weights_the_sizes_and_the_tokenizer(folder: Path, tmp_path: Path):
    assert run_export(folder, "sparse", tmp_path / "out", "--as", "gguf", "--dtype", "float32") == 0
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    keys, tensors = read_keys(reader), read_tensors(reader)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    merge_adapter(model, make_adapter(folder / "base", "sparse"))
    weights = {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}
    k = restore_rows(tensors["blk.0.attn_k.weight"], 2)
    np.testing.assert_array_equal(k, weights["model.layers.0.self_attn.k_proj.weight"])
    np.testing.assert_array_equal(tensors["output_norm.weight"], weights["model.norm.weight"])
    np.testing.assert_array_equal(tensors["output.weight"], weights["lm_head.weight"])
    assert len(tensors) == len(weights)
    sizes = {"block_count": 2, "context_length": 128, "embedding_length": 32,
             "feed_forward_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2,
             "rope.dimension_count": 8, "rope.freq_base": 10000.0}  # fmt: skip
    assert {name: keys[f"llama.{name}"] for name in sizes} == sizes
    tokenizer = train_tokenizer()
    assert keys["tokenizer.ggml.tokens"] == [
        token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ]
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert keys["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 3]
    assert keys["tokenizer.chat_template"] == tokenizer.chat_template


def test_a_model_is_half_as_large_in_float16_but_for_its_norms(folder: Path, tmp_path: Path):
    assert run_export(folder, "lora", tmp_path / "out", "--as", "gguf") == 0
    tensors = read_tensors(gguf.GGUFReader(tmp_path / "out/model.gguf"))
    assert {tensor.dtype.name for tensor in tensors.values() if tensor.ndim == 2} == {"float16"}
    assert tensors["blk.0.attn_norm.weight"].dtype == np.float32


def test_what_llama_cpp_has_no_place_for_is_refused_with_the_fix(
    folder: Path, tmp_path: Path, capsys
):
    base, store = folder / "base", DirectoryStore(folder / "store")
    embedding = "model.embed_tokens"
    rows = {f"{embedding}.token_rows": torch.zeros(1, 32)}
    cases: dict[str, tuple[Path, dict[str, Any], str, str]] = {
        "tokens": (base, {"tokens": {embedding: (5,)}, "head": rows}, "gguf-lora",
                   "trains embedding rows, whole modules or fused experts; a GGUF LoRA holds"),
        "classifier": (base, {"task": "sequence-classification"}, "gguf-lora",
                       "has the task sequence-classification"),
        "gpt2": (tiny_gpt2(tmp_path / "gpt2"), {"conv1d": True}, "gguf-lora",
                 "models of type gpt2 are not written as GGUF (llama, mistral, qwen2, qwen3)"),
    }  # fmt: skip
    for name, (model, changes, form, problem) in cases.items():
        adapter = make_adapter(model, "lora", **changes)
        commit_adapter(store, model, adapter, name, tmp_path / "folders")
        assert run_export(folder, name, tmp_path / "out" / name, "--as", form) == 2
        assert problem in capsys.readouterr().err
    assert run_export(folder, "lora", tmp_path / "x", "--as", "peft", "--dtype", "float16") == 2
    assert "--dtype: has no effect with --as peft" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_tokenizer_is_known_by_what_splits_its_texts(name: str):
    import json

    description = json.loads(train_tokenizer(name).backend_tokenizer.to_str())
    assert find_splitter(description) == name
