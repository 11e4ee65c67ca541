"""Load an adapter's folder by stock PEFT's own rules, and compare what arrives with the adapter.

PEFT may rename what it reads: for models whose experts transformers fuses, it takes any LoRA of a
`gate_proj` for one of an expert, and drops it with a warning. Such an adapter is kept in the
compact form.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slora.formats.peft import LoraAdapter, make_peft_tensors
from slora.formats.peft_keys import (
    A_SUFFIX,
    B_SUFFIX,
    PEFT_PREFIX,
    TOKEN_ROWS,
    make_factor_prefixes,
)

ADAPTER = "default"
"""The name under which PEFT loads an adapter if none is given."""


def build_empty_model(model: Any) -> nn.Module:
    """Return a model of the same class and config on the meta device, which costs no memory."""
    with torch.device("meta"):
        empty: nn.Module = type(model)(copy.deepcopy(model.config))
    return empty


def find_peft_loss(model: nn.Module, folder: Path, adapter: LoraAdapter) -> str:
    """Return what stock PEFT loses of the adapter in this folder, or an empty string.

    `model`: the base, with or without weights; it is wrapped by PEFT afterwards. No tensor of it is
    read, so the meta device will do.
    """
    from peft import PeftModel

    output = getattr(model, "get_output_embeddings", lambda: None)()
    if adapter.tokens and getattr(output, "bias", None) is not None:
        return "PEFT leaves the output projection's bias out where it trains rows of it"
    arrived: dict[str, Tensor] = {}
    handle = model.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
        lambda _, state, *__: arrived.update(state)
    )
    try:
        with warnings.catch_warnings():
            # It warns of what the comparison below finds.
            warnings.simplefilter("ignore")
            loaded = PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=True)
    except Exception as error:  # whatever PEFT raises, it can't hold the adapter
        return f"PEFT refuses it ({' '.join(str(error).split())[:200]})"
    finally:
        handle.remove()
    return _compare_tensors(loaded, arrived, adapter) or _compare_layers(loaded, adapter)


def _compare_tensors(loaded: nn.Module, arrived: dict[str, Tensor], adapter: LoraAdapter) -> str:
    slots = {name for name, _ in loaded.named_parameters(remove_duplicate=False)}
    for key, tensor in make_peft_tensors(adapter).items():
        name = _insert_adapter_name(key, adapter)
        if name not in slots or name not in arrived:
            return f"PEFT drops {key.removeprefix(PEFT_PREFIX)}"
        if not torch.equal(arrived[name].to(tensor), tensor):
            return f"PEFT changes {key.removeprefix(PEFT_PREFIX)}"
    return ""


def _insert_adapter_name(key: str, adapter: LoraAdapter) -> str:
    """Return the name that a tensor of the file has in a loaded model."""
    for suffix in (A_SUFFIX, B_SUFFIX):
        if key.endswith(suffix):
            return key.removesuffix(".weight") + f".{ADAPTER}.weight"
    if key.endswith(TOKEN_ROWS):
        return f"{key}.{ADAPTER}"
    name = key.removeprefix(PEFT_PREFIX)
    for module in adapter.head_modules:
        if name.startswith(f"{module}."):
            inner = name.removeprefix(f"{module}.")
            return f"{PEFT_PREFIX}{module}.modules_to_save.{ADAPTER}.{inner}"
    return key


def _compare_layers(loaded: nn.Module, adapter: LoraAdapter) -> str:
    """Compare each layer's scale, and which parameter of the experts it updates."""
    prefixes = make_factor_prefixes(adapter.factors, adapter.experts)
    for name, prefix in prefixes.items():
        layer: Any = loaded.get_submodule(prefix)
        if abs(layer.scaling[ADAPTER] - adapter.scale) > 1e-6 * abs(adapter.scale):
            return f"PEFT scales {name} by {layer.scaling[ADAPTER]:g}, not by {adapter.scale:g}"
        parameter = getattr(layer, "parameter_name", None)
        if parameter is not None and not name.endswith(f".{parameter}"):
            return f"PEFT takes {name} for {parameter}"
    return ""
