"""Shrunken copies of a model: its architecture with few, narrow layers and random weights.

What a layer computes with (attention, windows, state, convolution) is kept; what only costs time
and memory is not. Configs differ, so several ways to shrink are tried, the smallest model first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from jobs.plan.packing_choice import LIMITS

HEADS, HEAD_DIM, WIDTH = 4, 16, 64
LAYERS, EXPERTS, VOCABULARY, MAX_ELEMENTS = 12, 4, 256, 60_000_000
"""Layers: the periods of hybrid models fit into as many. Elements: a quarter of a gigabyte."""
CROSSED, UNCROSSED = 8, 4096
"""Tokens of a window that the probe's rows exceed, and of one that they do not."""
OPTIONS = {"initializer_range": 0.1, "use_cache": False}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
"""Names of the number of layers."""
SIZES = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY,
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2,
    "n_group": 1, "topk_group": 1, "num_kv_shared_layers": 0,
    "max_position_embeddings": 512, "n_positions": 512,
}  # fmt: skip
"""Upper bounds that leave the widths of the layers alone."""
WIDTHS = {
    "hidden_size": WIDTH, "n_embd": WIDTH, "d_model": WIDTH, "dim": WIDTH, "embed_dim": WIDTH,
    "out_hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "attention_hidden_size": WIDTH,
    "hidden_size_per_layer_input": HEAD_DIM, "lru_width": WIDTH, "embedding_size": WIDTH,
    "head_dim": HEAD_DIM, "global_head_dim": HEAD_DIM, "rotary_dim": HEAD_DIM // 2,
    "query_pre_attn_scalar": HEAD_DIM, "attention_key_hidden_size": WIDTH, "d_kv": HEAD_DIM,
    "num_attention_heads": HEADS, "n_head": HEADS, "n_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_attention_heads": HEADS,
    "intermediate_size": WIDTH, "ffn_dim": WIDTH, "n_inner": WIDTH, "d_ff": WIDTH,
    "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH,
    "intermediate_size_mlp": WIDTH, "shared_intermediate_size": WIDTH, "ffn_hidden_size": WIDTH,
    "decoder_ffn_dim": WIDTH, "encoder_ffn_dim": WIDTH, "block_ff_dim": WIDTH,
    "kv_lora_rank": HEAD_DIM, "q_lora_rank": HEAD_DIM, "qk_rope_head_dim": HEAD_DIM,
    "qk_nope_head_dim": HEAD_DIM, "v_head_dim": HEAD_DIM, "qk_head_dim": 2 * HEAD_DIM,
    "index_head_dim": 2 * HEAD_DIM, "index_n_heads": HEADS,
    "linear_num_key_heads": 2, "linear_num_value_heads": HEADS, "linear_key_head_dim": HEAD_DIM,
    "linear_value_head_dim": HEAD_DIM,
    "mamba_n_heads": 8, "mamba_num_heads": 8, "n_mamba_heads": 8, "mamba_d_head": HEAD_DIM,
    "mamba_head_dim": HEAD_DIM, "mamba_headdim": HEAD_DIM, "mamba_d_state": HEAD_DIM,
    "mamba_d_ssm": 2 * WIDTH, "mamba_dt_rank": HEADS, "time_step_rank": HEADS,
    "ssm_state_size": HEAD_DIM, "state_size": HEAD_DIM, "mamba_n_groups": 1, "n_groups": 1,
    "mamba_ngroups": 1, "mamba_chunk_size": HEAD_DIM, "chunk_size": HEAD_DIM, "mamba_expand": 2,
    "expand": 2,
}  # fmt: skip
"""Upper bounds of widths that fit together in nearly every architecture."""


Build = Callable[..., Any]
"""Makes a model from a config, with random weights."""


def make_shrunken_model(
    config: Any, *, exceed_limits: bool, build: Build = AutoModelForCausalLM.from_config
) -> PreTrainedModel:
    """Return a random copy of the smallest kind that transformers can build and run.

    With `exceed_limits` its windows are shorter than the probe's rows, otherwise they are longer.
    Raise ValueError if no copy is small enough, or none runs.
    """
    reason = "no copy is small enough"
    for shrink in (_shrink_widths, _shrink_sizes):
        try:
            shrunken = _make_config(config, shrink, exceed_limits=exceed_limits)
            if _count_elements(shrunken, build) <= MAX_ELEMENTS:
                return _build_model(shrunken, build)
        # Each class of transformers has its own errors for sizes that do not fit together.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    raise ValueError(reason)


def find_smallest_limit(config: Any) -> int | None:
    """Return the tokens of the model's smallest window, or None if it has none."""
    return min(_iter_limits(config.to_dict()), default=None)


def _iter_limits(values: dict[str, Any]) -> Iterator[int]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _iter_limits(value)
        elif key in LIMITS and isinstance(value, int):
            yield value


def _build_model(config: Any, build: Build) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = build(config, dtype=torch.float32)
    model = model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(10, 14)[None])
    return model


def _count_elements(config: Any, build: Build) -> int:
    with torch.device("meta"):
        model = build(config, dtype=torch.float32)
    return sum(parameter.numel() for parameter in model.parameters())


def _make_config(
    config: Any, shrink: Callable[[dict[str, Any]], None], *, exceed_limits: bool
) -> Any:
    values = copy.deepcopy(config.to_dict())
    for part in _iter_parts(values):
        _cut_layers(part)
        shrink(part)
        for key in LIMITS:
            if isinstance(part.get(key), int):
                part[key] = CROSSED if exceed_limits else UNCROSSED
        _clamp_tokens(part)
        # Wider than usual: a leak of one row into another then shows.
        part.update({key: value for key, value in OPTIONS.items() if key in part})
    values.pop("quantization_config", None)
    for key in ("dtype", "torch_dtype", "architectures", "transformers_version", "auto_map"):
        values.pop(key, None)
    model_type = values.pop("model_type")
    return AutoConfig.for_model(model_type, **values)


def _iter_parts(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the config and the configs inside it."""
    yield values
    for key, value in list(values.items()):
        if isinstance(value, dict) and not key.endswith(("2id", "2label")):
            yield from _iter_parts(value)


def _cut_layers(part: dict[str, Any]) -> None:
    """Keep the first layers, so many that each type of layer is among them."""
    count = next((part[key] for key in LAYER_COUNTS if isinstance(part.get(key), int)), None)
    if count is None:
        return
    lists = {
        key: value
        for key, value in part.items()
        if (isinstance(value, list | tuple) or "pattern" in key)
        and hasattr(value, "__len__")
        and len(value) == count
    }
    kinds = list(zip(*(map(str, value) for value in lists.values()), strict=True))
    cover = max((kinds.index(kind) + 1 for kind in set(kinds)), default=0)
    length = min(count, max(LAYERS, cover))
    if length == count:
        return
    part.update({key: length for key in LAYER_COUNTS if part.get(key) == count})
    part.update({key: value[:length] for key, value in lists.items()})
    for key, value in part.items():
        is_index = isinstance(value, list) and all(type(item) is int for item in value)
        if is_index and key not in lists and ("layer" in key or "idx" in key):
            part[key] = [item for item in value if item < length]


def _shrink_sizes(part: dict[str, Any]) -> None:
    """Reduce the vocabulary and the number of experts, and no width."""
    for key, bound in SIZES.items():
        if isinstance(part.get(key), int):
            part[key] = min(part[key], bound)


def _shrink_widths(part: dict[str, Any]) -> None:
    """Reduce the widths too, and the heads with them."""
    keys = ("num_attention_heads", "n_head", "n_heads")
    heads = next((part[key] for key in keys if isinstance(part.get(key), int)), None)
    for key in ("num_key_value_heads", "num_kv_heads", "n_head_kv"):
        if heads and isinstance(part.get(key), int):
            part[key] = min(heads, HEADS) if part[key] == heads else min(part[key], 2)
    _shrink_sizes(part)
    for key, bound in WIDTHS.items():
        if type(part.get(key)) is int:
            part[key] = min(part[key], bound)
        elif isinstance(part.get(key), list):
            part[key] = [min(item, bound) for item in part[key]]
    if isinstance(part.get("mrope_section"), list):
        part["mrope_section"] = [2, 3, 3]
    for key in ("long_factor", "short_factor"):
        if isinstance(part.get(key), list):
            share = part.get("partial_rotary_factor") or 1.0
            part[key] = part[key][: int(HEAD_DIM // 2 * share)]


def _clamp_tokens(part: dict[str, Any]) -> None:
    """Keep the ids of special tokens inside the vocabulary."""
    for key, value in part.items():
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            part[key] = value if value < VOCABULARY else VOCABULARY - 1
        elif key.endswith("_token_id") and isinstance(value, list):
            part[key] = [min(item, VOCABULARY - 1) for item in value]
