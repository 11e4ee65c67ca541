"""Write a LoRA as llama.cpp reads it: `llama-server --model BASE.gguf --lora adapter.gguf`.

R: the rank; O, I: rows and columns of a weight. llama.cpp scales a product by alpha / R.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from jobs.tools.llama_cpp.gguf_architecture import find_architecture
from slora.layers.factors import Factors

_TYPES = {
    "float16": (gguf.LlamaFileType.MOSTLY_F16, np.float16),
    "float32": (gguf.LlamaFileType.ALL_F32, np.float32),
}


def write_gguf_lora(
    path: Path,
    factors: Mapping[str, Factors],
    *,
    scale: float,
    rank: int,
    config: Any,
    name: str,
    dtype: str = "float32",
) -> None:
    """Write the factors (a_RI, b_OR) of layers, whose product is scaled by `scale`, for the base
    that has this config. Raise InputError for a family or a layer that llama.cpp does not know.
    """
    family = find_architecture(config)
    tensors = dict[str, Tensor]()
    for layer, (a_RI, b_OR) in factors.items():
        target = family.get_tensor_name(f"{layer}.weight")
        tensors[f"{target}.lora_a"] = a_RI
        tensors[f"{target}.lora_b"] = family.order_rows(f"{layer}.weight", b_OR)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scale * rank)
    write_tensors(writer, tensors, dtype)


def write_tensors(
    writer: gguf.GGUFWriter,
    tensors: Mapping[str, Tensor],
    dtype: str,
) -> None:
    """Write the file: matrices as `dtype`, vectors in float32, as llama.cpp demands them."""
    file_type, matrix_type = _TYPES[dtype]
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in tensors.items():
        array = tensor.detach().float().numpy()
        writer.add_tensor(name, array.astype(matrix_type) if array.ndim > 1 else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
