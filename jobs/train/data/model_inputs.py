"""What a model is called with for a batch: the inputs that it takes, and masks of packed rows.

With `positions` transformers finds the rows in position_ids that restart, and makes a mask for each
type of layer and for the kernel in use. Some models do not: they get the same masks ready-made. A
decoder beside an encoder gets the completion, shifted by the model's own rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, create_causal_mask

from jobs.spec.tasks import TargetKind
from jobs.train.data.collate import Batch

OPTIONAL_INPUTS = ("position_ids",)
"""Inputs that a model is given only if its forward names them."""


def make_model_inputs(model: Any, batch: Batch, *, device: torch.device) -> dict[str, Any]:
    """Return the keyword arguments of the model, on its device. `model` must not be wrapped."""
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {
        name: tensor.to(device)
        for name, tensor in batch.inputs.items()
        if name in accepted or name not in OPTIONAL_INPUTS
    }
    if "token_type_ids" in inputs and not _has_token_types(model):
        inputs.pop("token_type_ids", None)
    if batch.kind == "completion" and not shifts_own_labels(model):
        labels = inputs.pop("labels")
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    if (batch.packing != "off" or batch.kind == "completion") and "use_cache" in accepted:
        # With a cache no model looks for packed rows, and some decoders fail in training, whatever
        # their config says.
        inputs["use_cache"] = False
    if batch.packing == "positions" and _takes_bounds(model, accepted):
        inputs |= _make_bounds(inputs["position_ids"])
    if batch.packing == "mask":
        positions = batch.inputs["position_ids"].to(device)
        inputs["attention_mask"] = _make_mask(create_causal_mask, model, positions)
    if batch.packing == "layer-masks":
        positions = batch.inputs["position_ids"].to(device)
        inputs["attention_mask"] = {
            kind: _make_mask(LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind], model, positions)
            for kind in list_layer_types(model)
        }
    return inputs


def shifts_own_labels(model: Any) -> bool:
    """Return whether an encoder-decoder shifts the labels in its forward alone, which needs them
    there and computes a loss of its own.
    """
    return not hasattr(model, "prepare_decoder_input_ids_from_labels")


def explain_plain_loss(model: Any, kind: TargetKind) -> str:
    """Return why the loss of tokens needs all logits at once, as far as the class tells it; empty
    if nothing speaks against chunks. A plan counts on it, without weights.
    """
    if model.get_output_embeddings() is None:
        return "has no output projection"
    if kind == "completion" and shifts_own_labels(model):
        return "computes a loss of its own where it shifts the labels"
    return ""


def list_layer_types(model: Any) -> list[str]:
    """List the types of a model's layers, each once; empty if its config names none."""
    return list(dict.fromkeys(getattr(model.config.get_text_config(), "layer_types", None) or ()))


def _has_token_types(model: Any) -> bool:
    """Return whether the model tells the texts of a pair apart.

    GPT-2 would add the embedding of a token instead, and PaliGemma let all tokens of the type 0
    attend to later ones: such models are called without types.
    """
    is_accepted = "token_type_ids" in inspect.signature(model.forward).parameters
    # XLNet compares the types of two tokens, and so has no embedding of them to size.
    default = 2 if model.config.model_type == "xlnet" else 0
    return is_accepted and getattr(model.config, "type_vocab_size", default) > 1


def _takes_bounds(model: Any, accepted: Mapping[str, inspect.Parameter]) -> bool:
    """Return whether the model's attention is a flash kernel, which reads the rows of several
    sequences from their bounds alone.
    """
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    return passes_on and str(model.config._attn_implementation).startswith("flash_attention")


def _make_bounds(positions_mL: Tensor) -> dict[str, Any]:
    """Return the bounds of all rows in the flattened batch, as flash kernels take them."""
    positions_T = positions_mL.flatten()
    starts = (positions_T == 0).nonzero().flatten()
    bounds = torch.cat((starts, starts.new_tensor([len(positions_T)]))).to(torch.int32)
    longest = int(positions_T.max()) + 1
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _make_mask(create_mask: Any, model: Any, positions_mL: Tensor) -> Any:
    """Return the mask of packed rows in the form that the model's attention takes."""
    # Only its shape, dtype and device are read.
    embeddings = torch.empty(*positions_mL.shape, 0, dtype=model.dtype, device=positions_mL.device)
    return create_mask(
        config=model.config.get_text_config(),
        inputs_embeds=embeddings,
        attention_mask=None,
        past_key_values=None,
        position_ids=positions_mL,
    )
