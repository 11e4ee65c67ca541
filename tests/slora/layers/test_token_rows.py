"""Rows of the embedding that are trained whole, with a tied and with an own output projection."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers

from slora.formats.merge import attach_adapter, merge_adapter
from slora.formats.peft import LoraAdapter, make_compact, read_adapter, write_lora, write_sparse
from slora.formats.peft_check import build_empty_model, find_peft_loss
from slora.layers.base_layers import get_features
from slora.layers.install import freeze, install_lora, remove_layers
from slora.layers.lora import init_factors
from slora.layers.targets import find_targets
from slora.layers.token_rows import (
    SUFFIX,
    install_token_rows,
    list_token_rows,
    resize_for_tokens,
)

VOCABULARY, IDS = 20, (5, 20, 21)
"""Two of the tokens are new."""


def _build(family: str, *, tied: bool) -> Any:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=32,
        tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    freeze(model)
    return model


def _run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([[3, 5, 20, 7, 21, 5]])).logits
    return logits


@pytest.mark.parametrize("form", ["peft", "compact"])
@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Llama", True), ("Gemma", True)])
def test_only_the_rows_are_trained_and_they_reload_equal(family, tied, form, tmp_path):
    model = _build(family, tied=tied)
    resize_for_tokens(model, max(IDS) + 1)
    plain = _run(model)
    owners = install_token_rows(model, IDS)
    assert owners == list_token_rows(model)
    assert list(owners) == ["model.embed_tokens"] + ["lm_head"] * (not tied)
    torch.testing.assert_close(_run(model), plain)
    shapes = {
        name: get_features(layer)
        for name, layer in find_targets(model, ["q_proj"], head=[]).items()
    }
    factors = {n: init_factors(seed=0, name=n, shape=s, rank=2) for n, s in shapes.items()}
    install_lora(model, factors, scale=1.0)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rows = {n: p for n, p in trained.items() if n.endswith(SUFFIX)}
    assert {tuple(p.shape) for p in rows.values()} == {(3, 16)} and len(rows) == len(owners)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    model(
        input_ids=torch.tensor([[3, 5, 20, 7]]), labels=torch.tensor([[3, 5, 20, 7]])
    ).loss.backward()
    optimizer.step()
    adapted = _run(model)
    assert (adapted - plain).abs().max() > 1e-4
    adapter = LoraAdapter(
        {n: (trained[f"{n}.a_RI"].detach(), trained[f"{n}.b_OR"].detach()) for n in shapes},
        2.0, 2, "base", "causal-lm", tokens=owners, head={n: p.detach() for n, p in rows.items()},
    )  # fmt: skip
    remove_layers(model)
    if form == "peft":
        write_lora(tmp_path, adapter)
        assert find_peft_loss(build_empty_model(model), tmp_path, adapter) == ""
        base = _build(family, tied=tied)
        resize_for_tokens(base, max(IDS) + 1)
        stock = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
        torch.testing.assert_close(_run(stock), adapted, rtol=1e-4, atol=1e-5)
    else:
        write_sparse(tmp_path, make_compact(adapter))
    for put in (attach_adapter, merge_adapter):
        reloaded = _build(family, tied=tied)
        put(reloaded, read_adapter(tmp_path))
        torch.testing.assert_close(_run(reloaded), adapted, rtol=1e-4, atol=1e-5)
