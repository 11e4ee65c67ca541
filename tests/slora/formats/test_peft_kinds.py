"""One model of each kind: adapted layers = merged = stock PEFT, or PEFT's loss is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from slora.formats.merge import attach_adapter, merge_adapter
from slora.formats.peft import LoraAdapter, make_compact, read_adapter, write_lora, write_sparse
from slora.formats.peft_check import build_empty_model, find_peft_loss
from slora.layers.base_layers import get_features, is_conv1d
from slora.layers.factors import get_factors_shape
from slora.layers.install import freeze, install_lora, remove_layers
from slora.layers.lora import init_factors
from slora.layers.targets import find_targets

RANK, SCALE = 2, 1.5
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MIXTURE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LOCAL = {"num_local_experts": 3, "num_experts_per_tok": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("Llama", {}),
    "conv1d": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
    "experts": ("Mixtral", LOCAL),
    "experts in-out with biases": ("GptOss", {**LOCAL, "head_dim": 8}),
    "experts beside shared ones": ("Qwen2Moe", {**MIXTURE, "shared_expert_intermediate_size": 8}),
    "experts beside a dense layer": (
        "Qwen3Moe", {**MIXTURE, "mlp_only_layers": [0], "head_dim": 8}),
    "convolution and scan": ("Bamba", {
        "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
        "mamba_n_groups": 1, "mamba_chunk_size": 8}),
    "one module used twice": ("Albert", {"embedding_size": 16}),
    "changed in place": ("Deberta", {"relative_attention": True, "pos_att_type": ["c2p"]}),
}  # fmt: skip


def _build(kind: str) -> Any:
    family, options = KINDS[kind]
    sizes = dict(SIZES)
    if family in ("Albert", "Deberta", "GPT2"):
        del sizes["num_key_value_heads"]
    config = getattr(transformers, f"{family}Config")(**{**sizes, **options})
    suffix = {
        "Albert": "ForSequenceClassification", "Deberta": "ForSequenceClassification",
        "GPT2": "LMHeadModel",
    }  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, family + suffix.get(family, "ForCausalLM"))(config).eval()
    freeze(model)
    return model


def _adapt(model: Any, targets: Any = "all-linear") -> LoraAdapter:
    """Return a random adapter of every target."""
    head = model.get_output_embeddings() or model.classifier
    layers = find_targets(model, targets, head=[head], min_side=RANK)
    factors = {}
    for number, (name, layer) in enumerate(layers.items()):
        a_RI, b_OR = init_factors(seed=0, name=name, shape=get_features(layer), rank=RANK)
        generator = torch.Generator().manual_seed(number)
        factors[name] = a_RI, torch.randn(b_OR.shape, generator=generator) * 0.05
    conv1d = any(is_conv1d(layer) for layer in layers.values())
    if hasattr(model, "classifier"):
        tensors = {f"classifier.{n}": p.detach() for n, p in model.classifier.named_parameters()}
        return LoraAdapter(
            factors, SCALE * RANK, RANK, "base", "sequence-classification",
            head_modules=("classifier",), head=tensors,
        )  # fmt: skip
    return LoraAdapter(factors, SCALE * RANK, RANK, "base", "causal-lm", conv1d=conv1d)


def _run(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        return model(input_ids=ids)[0]


def _load_with_peft(folder: Path, build: Callable[[], Any]) -> torch.Tensor:
    return _run(peft.PeftModel.from_pretrained(build(), str(folder)).eval())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_layers_compute_what_the_merged_model_and_stock_peft_do(kind, tmp_path):
    model, adapter = _build(kind), _adapt(_build(kind))
    plain = _run(model)
    layers = install_lora(model, adapter.factors, scale=SCALE)
    adapted = _run(model)
    assert (adapted - plain).abs().max() > 1e-3
    model(input_ids=torch.arange(3, 27).view(2, 12))[0].square().sum().backward()
    assert all(layer.a_RI.grad is not None for layer in layers.values())
    remove_layers(model)
    assert torch.equal(_run(model), plain)
    merge_adapter(model, adapter)
    torch.testing.assert_close(_run(model), adapted, rtol=1e-4, atol=1e-5)
    write_lora(tmp_path, adapter)
    loss = find_peft_loss(build_empty_model(model), tmp_path, adapter)
    if kind == "experts beside a dense layer":
        # PEFT 0.21 takes the dense layer's LoRA for that of an expert.
        assert "PEFT" in loss
        (tmp_path / "compact").mkdir()
        write_sparse(tmp_path / "compact", make_compact(adapter))
        loaded = _build(kind)
        attach_adapter(loaded, read_adapter(tmp_path / "compact"))
        torch.testing.assert_close(_run(loaded), adapted, rtol=0, atol=0)
        return
    assert loss == ""
    stock = _load_with_peft(tmp_path, lambda: _build(kind))
    torch.testing.assert_close(stock, adapted, rtol=1e-4, atol=1e-5)
    loaded = _build(kind)
    attach_adapter(loaded, read_adapter(tmp_path))
    torch.testing.assert_close(_run(loaded), adapted, rtol=0, atol=0)


def test_experts_alone_are_held_by_peft_in_a_model_whose_dense_layers_are_not(tmp_path):
    kind = "experts beside a dense layer"
    adapter = _adapt(_build(kind), ["experts.*", "q_proj"])
    assert {get_factors_shape(pair).experts for pair in adapter.factors.values()} == {1, 3}
    write_lora(tmp_path, adapter)
    assert find_peft_loss(build_empty_model(_build(kind)), tmp_path, adapter) == ""
    model = _build(kind)
    install_lora(model, adapter.factors, scale=SCALE)
    stock = _load_with_peft(tmp_path, lambda: _build(kind))
    torch.testing.assert_close(stock, _run(model), rtol=1e-4, atol=1e-5)


def test_a_bfloat16_base_computes_with_its_experts_too():
    model = _build("experts").to(torch.bfloat16)
    adapter = _adapt(model)
    install_lora(model, adapter.factors, scale=SCALE)
    model(input_ids=torch.arange(3, 27).view(2, 12))[0].float().square().sum().backward()
    adapted = _run(model).float()
    remove_layers(model)
    merge_adapter(model, adapter)
    torch.testing.assert_close(_run(model).float(), adapted, rtol=0.1, atol=0.05)
