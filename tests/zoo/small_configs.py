"""Configurations of transformers' model types, made small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.heterogeneity.configuration_utils import (
    AmbiguousGlobalPerLayerAttributeError,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

Maker = Callable[[], PreTrainedModel]

VOCABULARY, WINDOW, POSITIONS = 260, 32, 128

WIDTHS = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "d_inner", "hidden_dim", "ffn_hidden_size"), 64
    ),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "block_ff_dim", "n_inner"), 64),
    "rotary_dim": 8,
    "head_dim": 8,
    "global_head_dim": 8,
    "d_kv": 8,
    "query_pre_attn_scalar": 8,
}
DEPTHS = dict.fromkeys(
    ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
     "num_decoder_layers", "num_encoder_layers"),
    2,
)  # fmt: skip
HEADS = {
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
}
LENGTHS = {
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"),
                    POSITIONS),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "sliding_window_size",
                     "attention_window_size"), WINDOW),
}  # fmt: skip
EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "experts_top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
STATES = {
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "mamba_d_ssm_state"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "block_size"), 16),
    "mamba_expand": 2,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3,
          "decoder_start_token_id": 0}  # fmt: skip
SIZES = {**WIDTHS, **DEPTHS, **HEADS, **LENGTHS, **EXPERTS, **LATENT, **STATES, **TOKENS}
"""What a configuration is made small with, where it has such a key."""


def shrink_config(model_type: str, **changes: Any) -> Any:
    """Return the configuration of a model type with small sizes, and these changes.

    A change to None leaves the key at the default of its class.
    """
    config_class = CONFIG_MAPPING[model_type]
    default, aliases = config_class(), getattr(config_class, "attribute_map", {})
    sizes = {
        key: value for key, value in SIZES.items() if _has_key(default, key) and key not in aliases
    }
    merged = {**sizes, **changes}
    if default.is_encoder_decoder:
        # T5's class has no default, and its models need one.
        merged["decoder_start_token_id"] = TOKENS["decoder_start_token_id"]
    return AutoConfig.for_model(
        model_type, **{key: value for key, value in merged.items() if value is not None}
    )


def _has_key(config: Any, key: str) -> bool:
    try:
        return hasattr(config, key)
    except AmbiguousGlobalPerLayerAttributeError:
        return True


def define_language_model(model_type: str, **changes: Any) -> Maker:
    """Return the maker of a small language model."""

    def make() -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            shrink_config(model_type, **changes)
        )
        return model

    return make


def define_model(model_type: str, class_name: str, **changes: Any) -> Maker:
    """Return the maker of a small model of this class."""

    def make() -> PreTrainedModel:
        config = shrink_config(model_type, **changes)
        model: PreTrainedModel = getattr(transformers, class_name)(config)
        return model

    return make
