"""Models of any size, as far as a plan reads them: config and headers, and the weights a hole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests.tiny import write_tokenizer

LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
"""70.6 B parameters, 141 GB in bfloat16."""
LLAMA_600B = LLAMA_70B | {"hidden_size": 18432, "intermediate_size": 73728,
                          "num_hidden_layers": 124, "num_attention_heads": 144}  # fmt: skip
"""About 600 B parameters, 1.2 TB in bfloat16."""
FILES = 15


def giant_llama(folder: Path, config: dict[str, Any] = LLAMA_70B) -> Path:
    """A Llama of that config, in bfloat16, over several files that take no room on the disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    shapes, weight_map = list(_shapes(config).items()), dict[str, str]()
    for number in range(FILES):
        part = dict(shapes[number::FILES])
        name = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        _hollow_file(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    wide, inner, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    narrow = wide // config["num_attention_heads"] * config["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, wide)}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for name, shape in {
            "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (narrow, wide),
            "self_attn.v_proj": (narrow, wide), "self_attn.o_proj": (wide, wide),
            "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide),
            "mlp.down_proj": (wide, inner), "input_layernorm": (wide,),
            "post_attention_layernorm": (wide,),
        }.items():  # fmt: skip
            found[f"{layer}.{name}.weight"] = shape
    return found | {"model.norm.weight": (wide,), "lm_head.weight": (vocab, wide)}


def _hollow_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, at = dict[str, Any](), 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    told = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        file.truncate(8 + len(told) + at)
