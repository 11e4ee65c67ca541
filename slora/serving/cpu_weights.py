"""Keep the linear weights of a vLLM worker on a CPU where patches reach them.

After loading, vLLM packs them for its CPU kernels and empties `layer.weight`; a patch then fails.
"""

from __future__ import annotations

from typing import Any

import torch


def keep_cpu_weights() -> None:
    """Replace vLLM's packing of two-dimensional weights by torch's own product. Repeatable."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm
    if getattr(pack, "keeps_weights", False):
        return

    def keep_weight(layer: Any, remove_weight: bool) -> None:
        if layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            pack(layer, remove_weight)

    keep_weight.keeps_weights = True  # type: ignore[attr-defined]
    utils.dispatch_cpu_unquantized_gemm = keep_weight
