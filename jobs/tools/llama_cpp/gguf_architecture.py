"""How llama.cpp holds the models of a family: names, rotated rows, and the keys of a file.

The names are those of gguf's `TensorNameMap`; the keys and the order of the rows are those that
llama.cpp's own converters write (`convert_hf_to_gguf.py`, `convert_lora_to_gguf.py`).

H: heads; D: the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor

from jobs.errors import Fault, InputError

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""By `model_type` of the config."""
_ROTATES_PAIRS = (gguf.MODEL_ARCH.LLAMA,)
"""llama.cpp rotates neighbouring rows of these; transformers, rows half a head apart."""


@dataclass(frozen=True)
class GgufArchitecture:
    """A model's family in llama.cpp, and its sizes."""

    arch: gguf.MODEL_ARCH
    config: Any
    names: gguf.TensorNameMap

    @property
    def head_width(self) -> int:
        """Return the width of a head, D."""
        width = getattr(self.config, "head_dim", None)
        return int(width or self.config.hidden_size // self.config.num_attention_heads)

    def get_tensor_name(self, key: str) -> str:
        """Return llama.cpp's name of a tensor of the model. Raise InputError for an unknown one."""
        name = self.names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise _make_error(f"llama.cpp has no tensor for {key}")
        return str(name)

    def order_rows(self, key: str, rows: Tensor) -> Tensor:
        """Return the rows of a weight, a bias or a factor B `[O, ...]` in llama.cpp's order."""
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        module = key.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        if self.arch not in _ROTATES_PAIRS or module not in heads:
            return rows
        count = int(getattr(self.config, heads[module]))
        # [H, 2, D / 2, ...]: row d of the first half is rotated with row d of the second.
        halves = rows.reshape(count, 2, rows.shape[0] // count // 2, *rows.shape[1:])
        return halves.transpose(1, 2).reshape(rows.shape).contiguous()

    def add_sizes(self, writer: gguf.GGUFWriter) -> None:
        """Write the keys that llama.cpp builds the model from."""
        config = self.config
        context = config.max_position_embeddings
        # llama.cpp has no sliding window for these families: up to one it computes the same.
        window = getattr(config, "sliding_window", None)
        writer.add_context_length(min(context, window) if window else context)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
        writer.add_rope_dimension_count(self.head_width)
        writer.add_key_length(self.head_width)
        writer.add_value_length(self.head_width)

    def iter_extra_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what llama.cpp reads beside the weights: the factors of Llama 3's frequencies."""
        rope = self.config.rope_parameters
        if rope.get("rope_type") == "llama3":
            yield "rope_freqs.weight", _compute_llama3_factors(rope, self.head_width)


def find_architecture(config: Any) -> GgufArchitecture:
    """Return the family of a model. Raise InputError for one that is not written here."""
    arch = _ARCHITECTURES.get(config.model_type)
    if arch is None:
        known = ", ".join(_ARCHITECTURES)
        raise _make_error(f"models of type {config.model_type} are not written as GGUF ({known})")
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _make_error(f"its rotary embedding ({kind}, or of a part of a head) is not written")
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    return GgufArchitecture(arch, config, names)


def _compute_llama3_factors(rope: dict[str, Any], width: int) -> Tensor:
    """Return what each of the D / 2 frequencies is divided by, float32.

    As in transformers' `_compute_llama3_parameters`.
    """
    factor, old_length = rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for at in range(0, width, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (at / width)
        if wavelength < old_length / high:
            factors.append(1.0)
        elif wavelength > old_length / low:
            factors.append(factor)
        else:
            smooth = (old_length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def _make_error(problem: str) -> InputError:
    remedy = "Use --as merged, and llama.cpp's own convert_hf_to_gguf.py on that folder."
    return InputError([Fault("--as", problem, remedy)])
