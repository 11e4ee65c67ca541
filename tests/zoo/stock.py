"""The reference: the same model by transformers alone, row by row, and PEFT as it is installed."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from tests.zoo.case import LABELS, TEXTS, ZooCase

IGNORED = -100


def load_stock(case: ZooCase, folder: Path | None = None) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model of a folder in float32, and what transformers says of its loading.

    A classifier gets as many labels as the rows have.
    """
    # A copy: some checks change the model, and its loading takes longer.
    return copy.deepcopy(_load_once(case, folder or case.base))


@functools.lru_cache(maxsize=2)
def _load_once(case: ZooCase, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    torch.manual_seed(0)
    if case.group == "CLASSIFY":
        labels = list(dict.fromkeys(LABELS))
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(labels), pad_token_id=0, ignore_mismatched_sizes=True, **options
        )
    else:
        architecture = json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0]
        model, info = getattr(transformers, architecture).from_pretrained(folder, **options)
    return model.eval(), info


def encode_rows(case: ZooCase) -> list[list[int]]:
    """Return the tokens of each row: its text, and for a language model one end token."""
    tokenizer = AutoTokenizer.from_pretrained(case.base)
    end = [tokenizer.eos_token_id] if case.task == "causal-lm" else []
    return [list(tokenizer(text)["input_ids"]) + end for text in TEXTS]


def compute_row_logits(case: ZooCase, model: Any, ids: list[int]) -> Tensor:
    """Return the logits of one row alone, `[L, V]`, or `[C]` for a classifier."""
    input_ids = torch.tensor([ids])
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if case.group == "SEQ2SEQ":
        inputs["decoder_input_ids"] = torch.tensor([[0, 70, 80, 90]])
    with torch.no_grad():
        logits: Tensor = call_without_cache(model, inputs).logits
    return logits[0]


def call_without_cache(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a model as a training does; some have no cache to turn off."""
    previous = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        return model(**inputs)
    finally:
        model.config.use_cache = previous


def compute_stock_loss(case: ZooCase, model: Any) -> float:
    """Return the mean cross-entropy of the rows' next tokens, each row alone."""
    total, count = 0.0, 0
    for ids in encode_rows(case):
        logits = compute_row_logits(case, model, ids)[:-1]
        total += float(nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return total / count


def find_gradients(case: ZooCase, model: Any) -> dict[str, float]:
    """Return the largest gradient of each parameter of the stock model on the rows, by name."""
    model.zero_grad()
    for number, ids in enumerate(encode_rows(case)):
        labels = torch.tensor([ids])
        if case.group == "CLASSIFY":
            labels = torch.tensor([list(dict.fromkeys(LABELS)).index(LABELS[number])])
        inputs = {"input_ids": torch.tensor([ids]), "labels": labels}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        call_without_cache(model, inputs).loss.backward()
    return {
        name: float(parameter.grad.abs().max()) if parameter.grad is not None else 0.0
        for name, parameter in model.named_parameters()
    }


def list_head_parameters(case: ZooCase, model: Any, info: Mapping[str, Any]) -> set[str]:
    """Return the parameters that a task adds: beside the base, or missing from the files."""
    if case.group != "CLASSIFY":
        return set()
    prefix = f"{model.base_model_prefix}."
    mismatched = info.get("mismatched_keys", ())
    absent = set(info["missing_keys"]) | {
        key if isinstance(key, str) else key[0] for key in mismatched
    }
    return {
        name
        for name, _ in model.named_parameters()
        if not name.startswith(prefix) or name in absent
    }


def read_tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of every tensor of a folder's safetensors, by name."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                part = file.get_slice(name)
                tensors[name] = (tuple(part.get_shape()), str(part.get_dtype()))
    return tensors


def load_peft(case: ZooCase, adapter: Path) -> Any:
    """Return the stock model with the folder's adapter, by PEFT alone. Its warnings are errors."""
    import warnings

    from peft import PeftModel

    model, _ = load_stock(case)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, adapter).eval()
    lost = [str(warning.message) for warning in caught if "adapter keys" in str(warning.message)]
    if lost:
        raise ValueError(f"PEFT: {lost[0]}")
    return adapted
