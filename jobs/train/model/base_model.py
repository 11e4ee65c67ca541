"""The frozen base through transformers: from a folder, without running its code or unpickling."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from jobs.errors import Fault, InputError
from jobs.plan.attention_choice import KERNELS
from jobs.spec.tasks import PROBLEM_TYPES, get_label_kind
from jobs.train.model.tokenizer import load_tokenizer

DECODERS = ("ForCausalLM", "LMHeadModel")


def load_model(
    path: str,
    *,
    task: str,
    dtype: str,
    attention: str = "auto",
    labels: Sequence[str] = (),
    label_kind: str = "one",
    seed: int = 0,
    new_head: bool = False,
) -> PreTrainedModel:
    """Load the base on the CPU, in evaluation mode; a classifier's head that the files lack is
    drawn from `seed`, and with `new_head` also one that they have. `attention` is model.attention,
    `label_kind` is data.labels.

    Raise InputError if the files lack other weights, or have them in other shapes.
    """
    config = _load_config(path, task, labels, label_kind)
    # A new head is drawn from torch's global generator: the same on every rank.
    torch.manual_seed(seed)
    name = KERNELS.get(attention, attention)
    kernel = {} if attention == "auto" else {"attn_implementation": name}
    model, info = choose_model_class(config, task).from_pretrained(
        path,
        config=config,
        dtype=getattr(torch, dtype),
        **kernel,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    if faults := check_loading(model, info, task, path):
        raise InputError(faults)
    if new_head:
        _draw_output_layer(model, len(labels))
    # Evaluation mode: with dropout the result would depend on how rows are split over workers.
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def load_empty_model(path: str, *, task: str, labels: Sequence[str] = ()) -> PreTrainedModel:
    """Return the base on the meta device: its layers without their weights."""
    config = _load_config(path, task, labels, "one")
    with torch.device("meta"):
        model: PreTrainedModel = choose_model_class(config, task)(config)
    return model


@dataclass(frozen=True)
class SavedTask:
    """The task of a saved model; for a classifier with its labels in their order."""

    task: str
    labels: tuple[str, ...] = ()
    label_kind: str = "one"


def read_saved_task(path: str | Path) -> SavedTask:
    """Return the task of a saved model."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        labels = list_config_labels(config)
        return SavedTask("sequence-classification", labels, read_label_kind(config))
    return SavedTask("seq2seq" if config.is_encoder_decoder else "causal-lm")


def read_label_kind(config: Any) -> str:
    """Return the labels that a classifier was trained for, as data.labels; with one output and
    nothing said, a number, as transformers takes it.
    """
    if config.problem_type is None:
        return "number" if config.num_labels == 1 else "one"
    return get_label_kind(config.problem_type)


def list_config_labels(config: Any) -> tuple[str, ...]:
    """Return the labels that a config names, in their order."""
    return tuple(str(config.id2label[number]) for number in sorted(config.id2label))


def choose_model_class(config: Any, task: str) -> Any:
    """Return transformers' class for a config and a task.

    A language model is loaded as the class that wrote it, also a multimodal one: the names in its
    adapter are then those of the published model. Raise InputError if there is no class.
    """
    model_class = _CHOICES[task](config)
    if model_class is not None:
        return model_class
    published = _get_published(config)
    is_pair = bool(config.is_encoder_decoder)
    problem, remedy = {
        "sequence-classification": (
            f"transformers has no sequence classifier for {config.model_type} ({published})",
            "Use model.task: seq2seq." if is_pair else "Use an encoder or a causal language model.",
        ),
        "seq2seq": (
            f"{published} (config.json) is not an encoder-decoder of texts",
            "Use model.task: causal-lm."
            if _choose_causal(config) is not None
            else "Use model.task: sequence-classification, or a model such as T5 or BART.",
        ),
        "causal-lm": (
            f"{published} (config.json) is not a causal language model",
            "Use model.task: seq2seq."
            if is_pair
            else "Use sequence-classification or another model.",
        ),
    }[task]
    raise InputError([Fault("model.task", problem, remedy)])


def _choose_causal(config: Any) -> Any:
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        model_class = _look_up(mapping, config)
        if model_class is not None and _is_same_kind(model_class.__name__, _get_published(config)):
            return model_class
    # Some language models, such as Mistral 4's, are in none of transformers' mappings.
    published = _get_published(config)
    model_class = getattr(transformers, published, None)
    if published.endswith(DECODERS) and getattr(model_class, "config_class", 0) is type(config):
        return model_class
    return None


def _choose_seq2seq(config: Any) -> Any:
    """Return the class, unless the model reads something else than texts or is one half only."""
    model_class = _look_up(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, config)
    is_half = _get_published(config).endswith(("ForCausalLM", "EncoderModel"))
    if model_class is None or is_half or not config.is_encoder_decoder:
        return None
    return model_class if model_class.main_input_name == "input_ids" else None


def _choose_classifier(config: Any) -> Any:
    return _look_up(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config)


_CHOICES = {
    "causal-lm": _choose_causal,
    "seq2seq": _choose_seq2seq,
    "sequence-classification": _choose_classifier,
}


def _get_published(config: Any) -> str:
    """Return the class that wrote the model."""
    return str((getattr(config, "architectures", None) or ["no architecture"])[0])


def find_head(model: PreTrainedModel, task: str, missing: Collection[str]) -> tuple[str, ...]:
    """Return the names of the modules that the task adds, or that the files lack and that only a
    classifier uses: its pooler. They are trained and saved completely.
    """
    if task != "sequence-classification":
        return ()
    poolers = [
        name
        for name, module in model.named_modules()
        if "pooler" in name.rpartition(".")[2] and _is_absent(name, module, missing)
    ]
    # DeBERTa's pooler is beside its base: it is part of both lists, and one module.
    return tuple(dict.fromkeys((*poolers, *(name for name, _ in list_head_modules(model)))))


def check_loading(
    model: PreTrainedModel, info: dict[str, Any], task: str, path: str | Path
) -> list[Fault]:
    """Check that the files have every weight outside the head, in the model's shape."""
    head = find_head(model, task, info["missing_keys"])
    missing = sorted(name for name in info["missing_keys"] if not is_within(name, head))
    mismatched = sorted(
        key
        for key in info["mismatched_keys"]
        # Another number of labels is no fault: the head is drawn anew.
        if not is_within(key[0], head)
        or not _differs_in_one(key[1], key[2], model.config.num_labels)
    )
    faults = []
    if missing:
        problem = f"{path} lacks {_list_names(missing)} of {type(model).__name__}"
        remedy = "Download the model again, or use one whose files are complete."
        faults.append(Fault("model.path", problem, remedy))
    if mismatched:
        name, in_files, in_model = mismatched[0]
        problem = (
            f"{len(mismatched)} weights in {path} do not fit its config.json, the first is {name}: "
            f"{tuple(in_files)} in the files, {tuple(in_model)} in the model"
        )
        faults.append(Fault("model.path", problem, "Use the config.json of these weights."))
    return faults


def list_towers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules of a multimodal model that are not part of its language model."""
    decoder = model.get_decoder()
    if decoder is model or model.config.get_text_config() is model.config:
        return []
    path = next(name for name, module in model.named_modules() if module is decoder)
    ancestors = [path.rpartition(".")[0]]
    while ancestors[-1]:
        ancestors.append(ancestors[-1].rpartition(".")[0])
    return [
        child
        for ancestor in ancestors
        for name, child in model.get_submodule(ancestor).named_children()
        if not is_within(path, [f"{ancestor}.{name}" if ancestor else name])
    ]


def list_head_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Return a classifier's modules beside its base, by name."""
    return [
        (name, module)
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def iter_saved_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over the buffers that belong to the model's saved state."""
    saved = model.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Return whether a weight or a module is one of the modules, or is in one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _look_up(mapping: Any, config: Any) -> Any:
    """Return the class of a config in one of transformers' mappings, or None."""
    model_class = mapping.get(type(config), None)
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _is_same_kind(name: str, published: str) -> bool:
    """Return whether a class is the published one, or a language model as that is."""
    return name == published or (name.endswith(DECODERS) and published.endswith(DECODERS))


def _is_absent(name: str, module: nn.Module, missing: Collection[str]) -> bool:
    names = [f"{name}.{inner}" for inner, _ in module.named_parameters()]
    return bool(names) and all(inner in missing for inner in names)


def _differs_in_one(first: Sequence[int], second: Sequence[int], size: int) -> bool:
    """Return whether two shapes are equal but for one dimension, which is `size` in the second."""
    pairs = [(a, b) for a, b in zip(first, second, strict=False) if a != b]
    return len(first) == len(second) and len(pairs) == 1 and pairs[0][1] == size


def _list_names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more weights" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{rest}"


def _draw_output_layer(model: PreTrainedModel, labels: int) -> None:
    """Draw the weights of the head's layer that scores the labels, which the files have too."""
    for _, head in list_head_modules(model):
        for module in head.modules():
            if isinstance(module, nn.Linear) and module.out_features == labels:
                for tensor in (module, *module.parameters(recurse=False)):
                    tensor._is_hf_initialized = False  # type: ignore[attr-defined]
                model._init_weights(module)


def _load_config(path: str, task: str, labels: Sequence[str], label_kind: str) -> Any:
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    text_config = config.get_text_config()
    if task == "sequence-classification":
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        config.problem_type = PROBLEM_TYPES[label_kind]
        if getattr(text_config, "pad_token_id", None) is None:
            # Decoders classify at the last token that is not padding.
            text_config.pad_token_id = load_tokenizer(path).pad_token_id
    else:
        config.use_cache = text_config.use_cache = False
    return config
