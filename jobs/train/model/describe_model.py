"""The description of a base: its class is built on torch's meta device, and its files' headers are
loaded into it, so that all names and shapes are those of the model that a run will load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel

from jobs.errors import Fault, InputError
from jobs.inspect.model_description import ModelDescription, TensorFacts
from jobs.inspect.model_folder import read_config
from jobs.inspect.weight_files import FLOATS, read_weights
from jobs.store.adapters.safetensors_header import TensorSpan
from jobs.train.data.model_inputs import explain_plain_loss
from jobs.train.model.base_model import (
    check_loading,
    choose_model_class,
    find_head,
    iter_saved_buffers,
    list_config_labels,
    list_towers,
    read_label_kind,
)
from slora.layers.base_layers import is_conv1d, is_experts_weight
from slora.layers.eligibility import NO_LAYER, list_excluded
from slora.layers.targets import HEAD, OUTPUT, classify_parameters

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}  # fmt: skip
LIBRARY = f"transformers {transformers.__version__}"


def describe_model(folder: Path, task: str) -> ModelDescription:
    """Describe the model of a folder for a task. Raise InputError if it cannot be used."""
    config = _load_config(folder)
    model_class = choose_model_class(config, task)
    spans, faults = read_weights(folder)
    if faults:
        raise InputError(faults)
    model, info = _load_headers(model_class, config, spans)
    label_axes = _find_label_axes(model_class, config) if task == "sequence-classification" else {}
    missing, mismatched = info["missing_keys"], info["mismatched_keys"]
    faults = [*check_loading(model, info, task, folder), *_check_types(model, spans)]
    if faults:
        raise InputError(faults)
    head = find_head(model, task, missing)
    has_saved_head = bool(label_axes) and not set(label_axes) & set(missing)
    is_tuned = has_saved_head and not {key[0] for key in mismatched} & set(label_axes)
    records = classify_parameters(
        model, head=map(model.get_submodule, head), towers=list_towers(model)
    )
    text_config = config.get_text_config()
    return ModelDescription(
        transformers=transformers.__version__,
        model_class=model_class.__name__,
        attention=str(model.config._attn_implementation),
        kernels=tuple(_iter_kernels(model)),
        parameters={
            name: _describe_tensor(tensor, label_axes.get(name))
            for name, tensor in model.named_parameters()
        },
        buffers={name: _describe_tensor(buffer) for name, buffer in iter_saved_buffers(model)},
        tied=dict(_iter_tied(model)),
        kinds={name: _name_kind(module) for name, module in _iter_owners(model)},
        linears={r.layer: r.shape for r in records if r.layer and r.shape and r.is_target},
        left_out={r.layer or r.name: r.reason for r in records if r.reason not in ("", *NO_LAYER)},
        excluded=tuple(list_excluded(r for r in records if r.reason not in (HEAD, OUTPUT))),
        token_width=_count_token_width(model),
        head=head,
        labels=list_config_labels(config) if is_tuned else (),
        label_kind=read_label_kind(config) if has_saved_head else "",
        has_saved_head=has_saved_head,
        unused=tuple(_iter_unused(model, task, spans, info["unexpected_keys"])),
        layer_types=tuple(dict.fromkeys(getattr(text_config, "layer_types", None) or ())),
        window=_find_window(text_config),
        is_stateful=bool(getattr(model, "_is_stateful", False)),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        plain_loss=_explain_plain_loss(model, task),
    )


def _explain_plain_loss(model: PreTrainedModel, task: str) -> str:
    if task == "sequence-classification":
        return ""
    return explain_plain_loss(model, "completion" if task == "seq2seq" else "tokens")


def _iter_kernels(model: PreTrainedModel) -> Iterator[str]:
    """Yield the values of model.attention that a model's class says it supports."""
    yield "eager"
    if model._supports_sdpa:
        yield "sdpa"
    if model._supports_flash_attn:
        yield "flash_attention_2"
    if model._supports_flex_attn:
        yield "flex"


def _load_config(folder: Path) -> Any:
    source, remedy = f"{folder}/config.json", "Use a model that transformers supports natively"
    config, _ = read_config(folder)
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        nearest = get_close_matches(kind, list(CONFIG_MAPPING), 1)
        known = f", such as {nearest[0]}" if nearest else ""
        code = "; its own code (auto_map) is never executed" if config.get("auto_map") else ""
        problem = f"{source} has the model_type {kind!r}, which {LIBRARY} does not know{code}"
        raise InputError(
            [Fault("model.path", problem, f"{remedy}{known}, or install a newer transformers.")]
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:  # transformers' configs raise errors of many kinds
        text = " ".join(str(error).split())[:300]
        problem = f"{LIBRARY} cannot read {source}: {text}"
        raise InputError([Fault("model.path", problem, "Correct the file.")]) from error


def _check_start_token(folder: Path, config: Any) -> Iterator[Fault]:
    """Check that a decoder behind an encoder has a token to start with."""
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        problem = f"{folder}/config.json has no decoder_start_token_id"
        remedy = "Add it: the id of the token that the decoder starts with, often the padding's."
        yield Fault("model.path", problem, remedy)


def _load_headers(
    model_class: Any, config: Any, spans: dict[str, TensorSpan]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model on the meta device, and what transformers says about the files' weights."""
    state = {
        name: torch.empty(span.shape, dtype=DTYPES.get(span.dtype, torch.uint8), device="meta")
        for name, span in spans.items()
    }
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # models and their conversions raise errors of many kinds
        text = " ".join(str(error).split())[:300]
        problem = f"{model_class.__name__} cannot be made of these files: {text}"
        remedy = "Use the config.json and the weights of one model."
        raise InputError([Fault("model.path", problem, remedy)]) from error
    return model, info


def _find_label_axes(model_class: Any, config: Any) -> dict[str, int]:
    """Return the weights whose size depends on the number of labels, with that dimension."""
    shapes = []
    for count in (5, 6):
        config = type(config).from_dict(config.to_dict())
        config.num_labels = count
        with torch.device("meta"):
            model = model_class(config)
        shapes.append({name: tensor.shape for name, tensor in model.named_parameters()})
    first, second = shapes
    return {
        name: next(axis for axis, size in enumerate(shape) if size != second[name][axis])
        for name, shape in first.items()
        if shape != second[name]
    }


def _check_types(model: PreTrainedModel, spans: dict[str, TensorSpan]) -> Iterator[Fault]:
    """Check that the files hold numbers, and not codes that only their scales make weights of."""
    parameters = dict(model.named_parameters())
    coded = [
        (name, span.dtype)
        for name, span in spans.items()
        if span.dtype not in FLOATS and name in parameters
    ]
    if coded:
        name, dtype = coded[0]
        problem = f"{name} is stored as {dtype}: quantized bases are not supported"
        yield Fault("model.path", problem, "Use the model's bfloat16 or float32 version.")


def _iter_unused(
    model: PreTrainedModel, task: str, spans: dict[str, TensorSpan], unexpected: Iterable[str]
) -> Iterator[str]:
    """Iterate over the weights that are not loaded, without buffers of integers and without the
    head of another task.
    """
    buffers = tuple(name for name, span in spans.items() if span.dtype not in FLOATS)
    prefix = f"{model.base_model_prefix}."
    has_base = task == "sequence-classification" and any(name.startswith(prefix) for name in spans)
    for name in sorted(unexpected):
        if (name.startswith(prefix) or not has_base) and not name.endswith(buffers):
            yield name


def _describe_tensor(tensor: torch.Tensor, label_axis: int | None = None) -> TensorFacts:
    return TensorFacts(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), label_axis)


def _count_token_width(model: PreTrainedModel) -> int:
    """Count the numbers that `install_token_rows` trains for one token."""
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    is_shared = not isinstance(output, nn.Linear) or output.weight is embedding
    return int(embedding.shape[1]) + (0 if is_shared else int(output.weight.shape[1]))


def _iter_tied(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Iterate over the names of parameters that have another name too, with their first one."""
    first_names = dict[int, str]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first_name = first_names.setdefault(id(parameter), name)
        if first_name != name:
            yield name, first_name


def _iter_owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the modules that have parameters of their own."""
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            yield name, module


def _name_kind(module: nn.Module) -> str:
    if is_conv1d(module):
        return "conv1d"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if any(is_experts_weight(module, weight) for weight in module.parameters(recurse=False)):
        return "experts"
    dimensions = max(parameter.ndim for parameter in module.parameters(recurse=False))
    return {0: "scalar", 1: "vector", 2: "matrix"}.get(dimensions, "tensor")


def _find_window(config: Any) -> int | None:
    """Return the number of positions that a layer with local attention sees, or None."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    keys = ("sliding_window", "attention_chunk_size", "local_attention", "window_size")
    values = (getattr(config, key, None) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
