"""The base is described by its headers and config, or by its layers without a config."""

from __future__ import annotations

from typing import Any

from jobs.plan.estimate.base_tensors import BaseFacts, describe_base

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (50, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (24, 8),
    "model.layers.1.self_attn.q_proj.weight": (8, 8),
    "model.norm.weight": (8,),
}
LINEARS = {
    name.removesuffix(".weight"): (shape[0], shape[1])
    for name, shape in SHAPES.items()
    if "proj" in name
}


def describe(config: dict[str, Any], *, causal: bool = True, **more: tuple[int, ...]) -> BaseFacts:
    shapes = SHAPES | {name.replace("__", "."): shape for name, shape in more.items()}
    return describe_base(shapes, LINEARS, config, has_logits=causal, file_bytes=1)


def test_widths_are_those_of_the_config():
    config = {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 40, "vocab_size": 99,
              "num_attention_heads": 4, "head_dim": 8, "rms_norm_eps": 1e-5}  # fmt: skip
    widths = describe(config).widths
    assert (widths.hidden, widths.layers, widths.inner, widths.vocab) == (16, 3, 40, 99)
    assert (widths.heads_width, widths.head_count, widths.gated, widths.rms) == (32, 4, True, True)


def test_a_silent_config_is_answered_by_the_layers():
    widths = describe({}).widths
    assert (widths.hidden, widths.layers, widths.inner, widths.head_count) == (8, 2, 24, 1)
    assert not widths.rms


def test_gpt2s_words_are_understood():
    config = {"n_embd": 16, "n_layer": 3, "n_head": 2, "activation_function": "gelu_new"}
    widths = describe(config).widths
    assert (widths.hidden, widths.layers, widths.heads_width, widths.activation_copies) == (
        16,
        3,
        16,
        6,
    )


def test_experts_that_a_token_visits_count_and_no_others():
    config = {"moe_intermediate_size": 10, "num_experts_per_tok": 4, "num_experts": 64}
    assert describe(config).widths.inner == 40


def test_without_an_output_of_its_own_a_language_model_uses_its_embedding_twice():
    assert describe({}).tied
    assert not describe({}, lm_head__weight=(50, 8)).tied
    assert not describe({}, causal=False).tied


def test_shares_are_padded_weight_by_weight():
    base = describe({})
    assert base.parameters == 400 + 64 + 192 + 64 + 8
    assert base.count_per_worker(3) == 134 + 22 + 64 + 22 + 3
    assert (base.count_per_worker(1), base.largest) == (base.parameters, 400)


def test_what_reads_the_embeddings_is_not_gathered_in_a_backward():
    norm = {"model__layers__0__input_layernorm__weight": (8,)}
    base = describe({"vocab_size": 50}, lm_head__weight=(50, 8), **norm)
    assert base.first_layer == {
        "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight",
    }  # fmt: skip
    assert sum(base.iter_forward()) - sum(base.iter_backward()) == 400 + 64 + 8
