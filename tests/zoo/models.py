"""Small random models of the architectures that people fine-tune, made by transformers itself.

Four dictionaries of name -> function that returns a PreTrainedModel, as it lies on a hub:
`CAUSAL` language models, `CLASSIFY` models that get a classifier's head (or have one), `SEQ2SEQ`
and `VLM` (with a vision tower; text alone is trained). A vocabulary of 260, windows and chunks of
32 tokens, 128 positions, some 30,000 parameters. They show mechanics, not quality.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.zoo.small_configs import (
    POSITIONS,
    VOCABULARY,
    WINDOW,
    Maker,
    define_language_model,
    define_model,
    shrink_config,
)

LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}
SLIDING_AND_FULL = {"layer_types": ["sliding_attention", "full_attention"]}

language = define_language_model
CAUSAL: dict[str, Maker] = {
    # dense decoders with rotary positions
    "llama": language("llama"),
    "llama-tied": language("llama", tie_word_embeddings=True),
    "llama-biased": language("llama", attention_bias=True, mlp_bias=True),
    "mistral": language("mistral"),
    "ministral": language("ministral"),
    "ministral3": language("ministral3"),
    "qwen2": language("qwen2", tie_word_embeddings=True),
    "qwen2-windowed": language("qwen2", use_sliding_window=True, max_window_layers=1),
    "qwen3": language("qwen3"),
    "gemma": language("gemma"),
    "gemma2": language("gemma2", attn_logit_softcapping=2.0),
    "gemma3-text": language("gemma3_text"),
    "gemma3n-text": language(
        "gemma3n_text", **SLIDING_AND_FULL, num_kv_shared_layers=0, intermediate_size=[64, 64],
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8, laurel_rank=4,
        altup_num_inputs=2, activation_sparsity_pattern=[0.0, 0.0],
    ),
    "gemma4-text": language(
        "gemma4_text", **SLIDING_AND_FULL, num_kv_shared_layers=0,
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8, num_experts=None,
        moe_intermediate_size=None, global_head_dim=8,
    ),
    "vaultgemma": language("vaultgemma"),
    "phi": language("phi", num_key_value_heads=4),
    "phi3": language("phi3"),
    "olmo": language("olmo"),
    "olmo2": language("olmo2"),
    "olmo3": language("olmo3"),
    "granite": language("granite"),
    "cohere": language("cohere"),
    "cohere2": language("cohere2"),
    "glm": language("glm"),
    "glm4": language("glm4"),
    "ernie4.5": language("ernie4_5"),
    "exaone4": language("exaone4"),
    "smollm3": language("smollm3"),
    "starcoder2": language("starcoder2"),
    "stablelm": language("stablelm"),
    "nemotron": language("nemotron"),
    "helium": language("helium"),
    "hunyuan-dense": language("hunyuan_v1_dense"),
    "seed-oss": language("seed_oss"),
    "apertus": language("apertus"),
    "arcee": language("arcee"),
    "nanochat": language("nanochat"),
    "persimmon": language("persimmon"),
    "bitnet": language("bitnet"),
    "minicpm3": language("minicpm3", num_key_value_heads=4, head_dim=None),
    "diffllama": language("diffllama"),
    "modernbert-decoder": language("modernbert-decoder", local_attention=WINDOW),
    # decoders with learned, relative or no positions
    "gpt2": language("gpt2"),
    "openai-gpt": language("openai-gpt"),
    "gpt-bigcode": language("gpt_bigcode"),
    "gpt-neo": language("gpt_neo", attention_types=[[["global", "local"], 1]]),
    "gpt-neox": language("gpt_neox"),
    "gptj": language("gptj"),
    "codegen": language("codegen"),
    "opt": language("opt"),
    "xglm": language("xglm"),
    "biogpt": language("biogpt"),
    "bloom": language("bloom"),
    "mpt": language("mpt", expansion_ratio=2),
    "falcon": language(
        "falcon", multi_query=True, new_decoder_architecture=False, head_dim=None
    ),
    "falcon-40b": language(
        "falcon", new_decoder_architecture=True, num_kv_heads=2, head_dim=None
    ),
    # mixtures of experts
    "mixtral": language("mixtral"),
    "qwen2-moe": language("qwen2_moe"),
    "qwen3-moe": language("qwen3_moe"),
    "olmoe": language("olmoe"),
    "flex-olmo": language("flex_olmo"),
    "phimoe": language("phimoe"),
    "granitemoe": language("granitemoe"),
    "granitemoe-shared": language("granitemoeshared"),
    "deepseek-v2": language("deepseek_v2", num_key_value_heads=4, head_dim=None),
    "deepseek-v3": language("deepseek_v3", num_key_value_heads=4, head_dim=None),
    "mistral4": define_model(
        "mistral4", "Mistral4ForCausalLM", num_key_value_heads=4, head_dim=None
    ),
    "glm4-moe": language("glm4_moe"),
    "dots1": language("dots1"),
    "ernie4.5-moe": language("ernie4_5_moe", moe_layer_start_index=1),
    "gpt-oss": language("gpt_oss", **SLIDING_AND_FULL),
    "llama4-text": language(
        "llama4_text", intermediate_size_mlp=64, num_experts_per_tok=1,
        interleave_moe_layer_step=2, moe_layers=[1], layer_types=["chunked_attention",
                                                                  "full_attention"],
    ),
    "minimax-m2": language("minimax_m2"),
    "hunyuan-moe": language("hunyuan_v1_moe"),
    # linear attention, state spaces, convolutions and recurrences
    "qwen3-next": language("qwen3_next", **LINEAR_AND_FULL),
    "qwen3-next-dense": language(
        "qwen3_next", **LINEAR_AND_FULL, num_experts=0, mlp_only_layers=[0, 1]
    ),
    "qwen3.5-text": language("qwen3_5_text", **LINEAR_AND_FULL),
    "qwen3.5-moe-text": language("qwen3_5_moe_text", **LINEAR_AND_FULL),
    "minimax": language("minimax", **LINEAR_AND_FULL),
    "mamba": language("mamba", intermediate_size=None),
    "mamba2": language("mamba2", num_heads=8),
    "falcon-mamba": language("falcon_mamba", intermediate_size=None),
    "falcon-h1": language("falcon_h1", mamba_d_ssm=64),
    "jamba": language(
        "jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1,
    ),
    "bamba": language("bamba", attn_layer_indices=[1]),
    "nemotron-h": language("nemotron_h", layers_block_type=["mamba", "attention"]),
    "granite4-hybrid": language(
        "granitemoehybrid", layer_types=["mamba", "attention"],
        layers_block_type=["mamba", "attention"],
    ),
    "granite4-micro": language(
        "granitemoehybrid", num_local_experts=0, num_experts_per_tok=0,
        layer_types=["attention", "attention"], layers_block_type=["attention", "attention"],
    ),
    "lfm2": language(
        "lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
    "lfm2-moe": language("lfm2_moe", layer_types=["conv", "full_attention"], num_dense_layers=1),
    "recurrent-gemma": language(
        "recurrent_gemma", lru_width=32, block_types=["recurrent", "attention"],
        attention_window_size=WINDOW,
    ),
    "rwkv": language("rwkv"),
}  # fmt: skip


def _encoder(model_type: str, class_name: str, **changes: Any) -> Maker:
    """Return the maker of an encoder, whose positions begin behind the padding token."""
    positions = {"max_position_embeddings": POSITIONS + 2} | changes
    return define_model(model_type, class_name, bos_token_id=None, eos_token_id=None, **positions)


CLASSIFY: dict[str, Maker] = {
    # masked language models and bare encoders
    "bert": _encoder("bert", "BertForMaskedLM"),
    "bert-bare": _encoder("bert", "BertModel"),
    "bert-no-pooler": lambda: _without_pooler("bert", "BertModel"),
    "roberta": _encoder("roberta", "RobertaForMaskedLM"),
    "camembert": _encoder("camembert", "CamembertForMaskedLM"),
    "xlm-roberta": _encoder("xlm-roberta", "XLMRobertaForMaskedLM"),
    "deberta": _encoder(
        "deberta", "DebertaModel", relative_attention=True, pos_att_type=["c2p", "p2c"]
    ),
    "deberta-v2": _encoder(
        "deberta-v2", "DebertaV2ForMaskedLM", relative_attention=True, position_buckets=16,
        pos_att_type=["c2p", "p2c"], share_att_key=True, norm_rel_ebd="layer_norm",
    ),
    "modernbert": _encoder("modernbert", "ModernBertForMaskedLM", local_attention=WINDOW),
    "electra": _encoder("electra", "ElectraForPreTraining", embedding_size=16),
    "distilbert": _encoder("distilbert", "DistilBertForMaskedLM"),
    "albert": _encoder("albert", "AlbertForMaskedLM", embedding_size=16),
    "mpnet": _encoder("mpnet", "MPNetForMaskedLM"),
    "ernie": _encoder("ernie", "ErnieModel"),
    "convbert": _encoder("convbert", "ConvBertModel"),
    "squeezebert": _encoder("squeezebert", "SqueezeBertModel"),
    "longformer": _encoder("longformer", "LongformerForMaskedLM", attention_window=[16, 16]),
    "eurobert": _encoder("eurobert", "EuroBertForMaskedLM"),
    "rembert": _encoder("rembert", "RemBertForMaskedLM", input_embedding_size=32,
                        output_embedding_size=32),
    "roformer": _encoder("roformer", "RoFormerForMaskedLM"),
    "esm": _encoder("esm", "EsmForMaskedLM", token_dropout=False, mask_token_id=2),
    "xlnet": define_model("xlnet", "XLNetLMHeadModel", max_position_embeddings=None),
    # encoder-decoders
    "bart-cls": define_model("bart", "BartForConditionalGeneration"),
    "t5-cls": define_model("t5", "T5ForConditionalGeneration"),
    # decoders
    "llama-cls": CAUSAL["llama"],
    "qwen2-cls": CAUSAL["qwen2"],
    "qwen3-cls": CAUSAL["qwen3"],
    "gemma-cls": CAUSAL["gemma"],
    "gemma2-cls": CAUSAL["gemma2"],
    "gemma3-cls": CAUSAL["gemma3-text"],
    "mistral-cls": CAUSAL["mistral"],
    "phi3-cls": CAUSAL["phi3"],
    "gpt2-cls": CAUSAL["gpt2"],
    "opt-cls": CAUSAL["opt"],
    "gpt-neox-cls": CAUSAL["gpt-neox"],
    "bloom-cls": CAUSAL["bloom"],
    "granite-olmo-cls": CAUSAL["olmo2"],
    "modernbert-dec-cls": CAUSAL["modernbert-decoder"],
    "mixtral-cls": CAUSAL["mixtral"],
    "qwen3.5-cls": CAUSAL["qwen3.5-text"],
    "qwen3-bare-cls": define_model("qwen3", "Qwen3Model"),
    "gemma3-bare-cls": define_model("gemma3_text", "Gemma3TextModel"),
    "gpt2-bare-cls": define_model("gpt2", "GPT2Model"),
    # classifiers that were tuned before
    "llama-tuned-cls": define_model("llama", "LlamaForSequenceClassification", num_labels=3),
    "bert-tuned-cls": _encoder("bert", "BertForSequenceClassification", num_labels=3),
    "roberta-tuned-cls": _encoder("roberta", "RobertaForSequenceClassification", num_labels=2),
}  # fmt: skip

SEQ2SEQ: dict[str, Maker] = {
    "t5": define_model("t5", "T5ForConditionalGeneration"),
    "flan-t5": define_model(
        "t5", "T5ForConditionalGeneration", feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    ),
    "mt5": define_model("mt5", "MT5ForConditionalGeneration"),
    "longt5": define_model("longt5", "LongT5ForConditionalGeneration", local_radius=15,
                           global_block_size=8),
    "bart": define_model("bart", "BartForConditionalGeneration"),
    "mbart": define_model("mbart", "MBartForConditionalGeneration"),
    "pegasus": define_model("pegasus", "PegasusForConditionalGeneration"),
    "marian": define_model("marian", "MarianMTModel"),
    "m2m100": define_model("m2m_100", "M2M100ForConditionalGeneration"),
    "blenderbot": define_model("blenderbot", "BlenderbotForConditionalGeneration"),
}  # fmt: skip


def _without_pooler(model_type: str, class_name: str) -> PreTrainedModel:
    config = shrink_config(model_type, bos_token_id=None, eos_token_id=None)
    model: PreTrainedModel = getattr(transformers, class_name)(config, add_pooling_layer=False)
    return model


VISION_TOKENS = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252,
                 "vision_end_token_id": 253}  # fmt: skip
SIGLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 16, "patch_size": 4}  # fmt: skip
QWEN_TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
              "out_hidden_size": 32, "patch_size": 4, "num_position_embeddings": 16,
              "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                             "mrope_section": [1, 1, 2]}}  # fmt: skip


def _define_multimodal(
    model_type: str, class_name: str, text_type: str, *, vision: dict[str, Any],
    text: dict[str, Any] | None = None, **changes: Any,
) -> Maker:  # fmt: skip
    """Return the maker of a model with a vision tower in front of a language model."""

    def make() -> PreTrainedModel:
        text_config = shrink_config(text_type, **(text or {})).to_dict()
        config = CONFIG_MAPPING[model_type](
            text_config=text_config, vision_config=vision, **changes
        )
        model: PreTrainedModel = getattr(transformers, class_name)(config)
        return model

    return make


VLM: dict[str, Maker] = {
    "gemma3-vision": _define_multimodal(
        "gemma3", "Gemma3ForConditionalGeneration", "gemma3_text", vision=SIGLIP,
        mm_tokens_per_image=4, image_token_index=250, boi_token_index=251, eoi_token_index=252,
    ),
    "qwen2-vl": _define_multimodal(
        "qwen2_vl", "Qwen2VLForConditionalGeneration", "qwen2_vl_text", text=MROPE,
        vision={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
                "patch_size": 4},
        **VISION_TOKENS,
    ),
    "qwen2.5-vl": _define_multimodal(
        "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl_text", text=MROPE,
        vision={**QWEN_TOWER, "fullatt_block_indexes": [0]}, **VISION_TOKENS,
    ),
    "qwen3-vl": _define_multimodal(
        "qwen3_vl", "Qwen3VLForConditionalGeneration", "qwen3_vl_text", text=MROPE,
        vision={**QWEN_TOWER, "deepstack_visual_indexes": [0]}, **VISION_TOKENS,
    ),
    "qwen3.5": _define_multimodal(
        "qwen3_5", "Qwen3_5ForConditionalGeneration", "qwen3_5_text", text=LINEAR_AND_FULL,
        vision=QWEN_TOWER, **VISION_TOKENS,
    ),
    "llava": _define_multimodal(
        "llava", "LlavaForConditionalGeneration", "llama",
        vision={"model_type": "clip_vision_model", **SIGLIP}, image_token_index=250,
        vision_feature_layer=-1,
    ),
    "mistral3": _define_multimodal(
        "mistral3", "Mistral3ForConditionalGeneration", "mistral",
        vision={"model_type": "pixtral", **SIGLIP}, image_token_index=250,
    ),
    "paligemma": _define_multimodal(
        "paligemma", "PaliGemmaForConditionalGeneration", "gemma",
        vision={"model_type": "siglip_vision_model", "projection_dim": 32, **SIGLIP},
        image_token_index=250,
        projection_dim=32,
    ),
}  # fmt: skip
