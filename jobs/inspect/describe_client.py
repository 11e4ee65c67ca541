"""Ask for the description of a model, from the cache if it is there. No torch.

A description depends on config.json and on the headers of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jobs.inspect.answer_cache import recall_answer
from jobs.inspect.inspection_client import inspect_model
from jobs.inspect.model_description import ModelDescription, parse_description
from jobs.store.adapters.safetensors_header import TensorSpan


def describe_folder(folder: Path, task: str, spans: Mapping[str, TensorSpan]) -> ModelDescription:
    """Return the description of the model in a folder, whose weights have these spans.

    Raise InputError if the model cannot be used, and NotInstalled without transformers.
    """
    # The folder's name is in the messages, but in no description.
    config = (folder / "config.json").read_text(encoding="utf-8")
    tensors = sorted((name, span.dtype, span.shape) for name, span in spans.items())
    return recall_answer(
        "descriptions",
        [config, task, tensors],
        parse=parse_description,
        ask=lambda: inspect_model("describe", folder, task=task),
    )
