"""Attention whose backward is made of matrix products is that of torch's kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from jobs.train.attention import half_attention
from jobs.train.attention.half_attention import (
    LONGEST,
    attend,
    attend_by_products,
    is_faster_by_products,
    use_products_in_sdpa,
)

MASKS = ("causal", "none", "padding", "both", "one for all", "tokens alone")


def draw_mask(kind: str, rows: int, length: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(2)
    if kind in ("causal", "none"):
        return None
    if kind == "one for all":
        mask = torch.rand(1, 1, length, length, generator=generator) > 0.4
        return mask | torch.eye(length, dtype=torch.bool)
    ends = torch.randint(1, length + 1, (rows, 1, 1, 1), generator=generator)
    mask = torch.arange(length) < ends
    if kind == "tokens alone":
        return mask
    mask = mask.expand(-1, -1, length, -1)
    return mask.tril() if kind == "both" else mask


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("length", [1, 7, LONGEST])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_backward_by_products_is_that_of_attention(length: int, kv_heads: int, kind: str):
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(3, heads, length, 16, generator=generator).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]
    upstream = torch.randn(3, 4, length, 16, generator=generator)
    causally, mask = kind == "causal", draw_mask(kind, 3, length)
    options: dict[str, Any] = {"causally": causally, "mask": mask}
    expected = scaled_dot_product_attention(
        *tensors, attn_mask=mask, is_causal=causally, enable_gqa=True
    )
    gradients = torch.autograd.grad(expected, tensors, upstream)
    exact = torch.autograd.grad(attend_by_products(*tensors, None, **options), tensors, upstream)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
    output = attend_by_products(*halves, None, **options)
    rounded = torch.autograd.grad(output, halves, upstream.bfloat16())
    for gradient, float32, bfloat16 in zip(gradients, exact, rounded, strict=True):
        # Of one token, the gradients of query and key are 0.
        scale = gradient.abs().max().clamp(min=1)
        assert (float32 - gradient).abs().max() < 1e-5 * scale
        assert (bfloat16 - gradient).abs().max() < 0.03 * scale


def test_few_rows_at_a_time_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(5, 2, 6, 8, generator=generator).requires_grad_() for _ in range(3)]
    mask = draw_mask("padding", 5, 6)
    whole = torch.autograd.grad(attend_by_products(*tensors, None, mask=mask).sum(), tensors)
    # Two rows of 2 x 6 x 6 weights.
    monkeypatch.setattr(half_attention, "MAX_WEIGHTS", 150)
    parts = torch.autograd.grad(attend_by_products(*tensors, None, mask=mask).sum(), tensors)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


def test_a_query_that_sees_nothing_gives_no_gradient():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 2, 4, 8, generator=generator).requires_grad_() for _ in range(3)]
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None].clone()
    mask[..., 0, :] = False
    output = attend_by_products(*tensors, None, mask=mask)
    gradients = torch.autograd.grad(output[:, :, 1:].sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][:, :, 0].any()


MODULE = SimpleNamespace(is_causal=True, num_key_value_groups=2)


@pytest.mark.parametrize("kind", MASKS)
def test_attention_of_a_layer_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch, kind: str):
    used = []
    monkeypatch.setattr(half_attention, "is_faster_by_products", lambda *_: used.append(1) or True)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, heads, 9, 8, generator=generator) for heads in (4, 2, 2)]
    mask, module = draw_mask(kind, 2, 9), MODULE
    if kind == "none":
        module = SimpleNamespace(is_causal=False, num_key_value_groups=2)
    if mask is not None and mask.shape[2] == 1:
        mask = mask.expand(-1, -1, 9, -1)
    expected, _ = sdpa_attention_forward(module, *tensors, mask, scaling=0.3)
    output, weights = attend(module, *tensors, mask, scaling=0.3)
    assert used and weights is None
    assert (output - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.5}, {"position_bias": torch.ones(1, 4, 9, 9)}, {"attention_mask": "additive"}],
)
def test_other_attention_is_left_to_transformers(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
):
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(half_attention, "attend_by_products", refuse)
    monkeypatch.setattr(half_attention, "is_faster_by_products", lambda *_: True)
    tensors = [torch.randn(2, heads, 9, 8) for heads in (4, 2, 2)]
    mask = torch.zeros(2, 1, 9, 9) if options.pop("attention_mask", None) else None
    output, _ = attend(MODULE, *tensors, mask, **options)
    assert output.shape == (2, 9, 4, 8)


def test_products_are_for_short_rows_in_bfloat16():
    query = torch.empty(1, 1, LONGEST, 8, dtype=torch.bfloat16)
    longer = torch.empty(1, 1, LONGEST + 1, 8, dtype=torch.bfloat16)
    supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert is_faster_by_products(query, query) == supported
    assert not is_faster_by_products(longer, longer)
    # Of a cache.
    assert not is_faster_by_products(query[:, :, :1], query)
    assert not is_faster_by_products(query.float(), query.float())
    assert not is_faster_by_products(query.to("meta"), query.to("meta"))


def test_an_encoder_with_padded_texts_learns_the_same(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(12) < torch.tensor([[12], [7], [3]])

    def compute_gradient() -> Tensor:
        model.zero_grad()
        logits = model(input_ids=ids, attention_mask=tokens.long()).logits
        logits.float().square().sum().backward()
        return model.bert.embeddings.word_embeddings.weight.grad.clone()

    expected = compute_gradient()
    used = []

    def note(*tensors: Any, **options: Any) -> Tensor:
        used.append(tensors)
        return attend_by_products(*tensors, **options)

    monkeypatch.setattr(half_attention, "attend_by_products", note)
    monkeypatch.setattr(half_attention, "is_faster_by_products", lambda *_: True)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", sdpa_attention_forward)
    use_products_in_sdpa()
    gradient = compute_gradient()
    assert len(used) == 2
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()
