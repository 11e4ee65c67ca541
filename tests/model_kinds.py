"""Random models of the kinds that people bring, of a few thousand weights, made by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ENCODER = {key: SIZES[key] for key in SIZES if key not in ("bos_token_id", "eos_token_id")}
LINEAR_ATTENTION = {"head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
    "out_hidden_size": 32, "patch_size": 4, "num_position_embeddings": 16, "spatial_merge_size": 2,
    "temporal_patch_size": 2}  # fmt: skip
T5 = {"vocab_size": 260, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}  # fmt: skip
BART = {"vocab_size": 260, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": None}  # fmt: skip

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "tied": ("Qwen2Config", "Qwen2ForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    "windows": ("Gemma2Config", "Gemma2ForCausalLM", {**GROUPED, "head_dim": 8,
        "sliding_window": 32, "query_pre_attn_scalar": 8}),
    "transposed": ("GPT2Config", "GPT2LMHeadModel", {"vocab_size": 260, "n_embd": 32, "n_layer": 2,
        "n_head": 4, "n_positions": 128}),
    "experts": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**GROUPED, **EXPERTS, "head_dim": 8}),
    "router bias": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {**SIZES,
        "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "topk_group": 1, "n_group": 1}),
    "layer scalars": ("Gemma4TextConfig", "Gemma4ForCausalLM", {**GROUPED, "head_dim": 8,
        "sliding_window": 32, "global_head_dim": 8, "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": 260, "hidden_size_per_layer_input": 8}),
    "activation buffers": ("ApertusConfig", "ApertusForCausalLM", GROUPED),
    "convolutions": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**GROUPED, **LINEAR_ATTENTION}),
    "state": ("MambaConfig", "MambaForCausalLM", {**SIZES, "state_size": 8}),
    "unmapped": ("Mistral4Config", "Mistral4ForCausalLM", {**SIZES, "num_key_value_heads": 4,
        "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}),
    "multimodal": ("Qwen3_5Config", "Qwen3_5ForConditionalGeneration", {
        "text_config": {**GROUPED, **LINEAR_ATTENTION}, "vision_config": VISION,
        "image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252,
        "vision_end_token_id": 253}),
    "encoder": ("BertConfig", "BertForMaskedLM", ENCODER),
    "shared encoder": ("AlbertConfig", "AlbertForMaskedLM", {**ENCODER, "embedding_size": 16}),
    "two-layer head": ("ElectraConfig", "ElectraForPreTraining", {**ENCODER, "embedding_size": 16}),
    "pooler in the head": ("DebertaV2Config", "DebertaV2Model", {**ENCODER,
        "relative_attention": True, "position_buckets": 16}),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART),
    "tuned encoder": ("BertConfig", "BertForSequenceClassification", {**ENCODER, "num_labels": 3}),
}  # fmt: skip
"""Configuration class, model class and configuration by kind."""


def save_model(kind: str, folder: Path) -> Any:
    """Save a random model of a kind, and return it."""
    import torch
    import transformers

    config_class, model_class, values = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
    for name, buffer in model.named_buffers():
        if name in model.state_dict() and buffer.is_floating_point():
            # As trained models have them: what is not saved does not come back by itself.
            buffer.fill_(0.375)
    model.save_pretrained(folder)
    return model.eval()
