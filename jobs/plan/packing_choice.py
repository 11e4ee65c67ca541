"""The choice whether rows are packed, and how: what a model computes with, not what it is called.

A process with torch tries packing on a small random copy of the model, as the plan loads none
(`jobs.train.model.packing_probe`). Its answer is cached by what matters in the model's config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from jobs.errors import Fault, JobsError
from jobs.inspect.answer_cache import recall_answer
from jobs.inspect.inspection_client import inspect_model
from jobs.inspect.model_files import ModelFiles
from jobs.spec.schema import RunSpec

PackingMode = Literal["positions", "mask", "layer-masks", "off", "undecided"]
"""positions: position_ids alone, which restart in each row; mask: one mask for all layers beside
them; layer-masks: a mask for each type of layer."""
SIZES = (
    "_size",
    "_token_id",
    "_token_index",
    "_dim",
    "dtype",
    "_range",
    "_std",
    "_eps",
    "_version",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
"""Endings of keys of a config that packing does not depend on."""
LIMITS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size",
          "attention_window", "original_max_position_embeddings")  # fmt: skip
"""Keys of a config for a number of tokens above which a layer computes in another way."""


@dataclass(frozen=True)
class PackingChoice:
    """Whether and how rows are packed, and why."""

    mode: PackingMode
    reason: str
    by_row: bool = False
    """Attention is computed within each row, without a mask, be rows packed or padded."""

    @property
    def is_on(self) -> bool:
        """Return whether several rows share a sequence."""
        return self.mode not in ("off", "undecided")


UNDECIDED = PackingChoice("undecided", "decided at load")


@dataclass(frozen=True)
class ProbeAnswer:
    """The choices for a model: for rows of any length, and for those that exceed no window."""

    any_length: PackingChoice
    within_limit: PackingChoice
    limit: int | None
    """Tokens of the model's smallest window; None if it has none."""
    reads_ahead: bool = False
    """Whether a token's logits depend on later tokens."""

    def choose(self, max_length: int) -> PackingChoice:
        """Return the choice for rows of at most `max_length` tokens."""
        is_within = self.limit is not None and max_length <= self.limit
        return self.within_limit if is_within else self.any_length


_ANSWER = TypeAdapter(ProbeAnswer)


def choose_packing(spec: RunSpec, model: ModelFiles) -> PackingChoice:
    """Return the choice for a run, from the spec or from a probe of the model's architecture."""
    choice = choose_by_spec(spec)
    if choice and spec.model.task != "causal-lm":
        return choice
    answer = _recall_or_probe(_read_config(model), model.folder, get_probe_kernel(spec))
    if answer is None:
        return choice or UNDECIDED
    tried = answer.choose(spec.data.max_length)
    if choice:
        return replace(choice, by_row=tried.by_row and spec.model.attention == "auto")
    return adapt_to_kernel(tried, spec)


def get_probe_kernel(spec: RunSpec) -> str | None:
    """Return the kernel to try a small copy with on a CPU; None for transformers' choice."""
    return spec.model.attention if spec.model.attention in ("eager", "sdpa") else None


def adapt_to_kernel(choice: PackingChoice, spec: RunSpec) -> PackingChoice:
    """Return the choice of a trial on a CPU, for the kernel that the spec asks for."""
    kernel = spec.model.attention
    if kernel == "auto":
        return choice
    if kernel in ("flash_attention_2", "flex") and choice.mode in ("mask", "layer-masks"):
        return PackingChoice("off", f"{kernel} takes no mask, which the model needs")
    return replace(choice, by_row=False)


def choose_by_spec(spec: RunSpec) -> PackingChoice | None:
    """Return the choice where the spec alone makes it, or None."""
    if spec.model.task == "sequence-classification":
        return PackingChoice("off", "a classifier reads one row at a time")
    if spec.model.task == "seq2seq":
        # Nothing tells a decoder's cross-attention which prompt a packed answer belongs to.
        return PackingChoice("off", "an encoder-decoder reads one prompt at a time")
    if spec.data.packing is False:
        return PackingChoice("off", "set in the spec")
    return None


def check_packing(spec: RunSpec, choice: PackingChoice) -> Iterator[Fault]:
    """Check that packing which the spec demands is possible with the model."""
    if spec.data.packing is True and choice.mode == "off":
        yield Fault("data.packing", f"true, but {choice.reason}", "Use auto or false.")


def check_causality(spec: RunSpec, model: ModelFiles) -> Iterator[Fault]:
    """Check that a language model cannot see the tokens that it learns to predict."""
    if spec.model.task != "causal-lm":
        return
    answer = _recall_or_probe(_read_config(model), model.folder, get_probe_kernel(spec))
    if answer is not None and answer.reads_ahead:
        name = model.description.model_class
        problem = f"each token of {name} attends to later ones, so that it would learn to copy them"
        remedy = "Use a causal language model, or model.task: sequence-classification."
        yield Fault("model.path", problem, remedy)


def _read_config(model: ModelFiles) -> str:
    return (model.folder / "config.json").read_text(encoding="utf-8")


@lru_cache(maxsize=64)
def _recall_or_probe(config: str, folder: Path, kernel: str | None) -> ProbeAnswer | None:
    """Return the probe's answer. Whatever keeps it from one, the run's workers decide."""
    try:
        return recall_answer(
            "packing",
            [_strip_sizes(json.loads(config)), kernel],
            parse=_ANSWER.validate_json,
            ask=lambda: inspect_model("probe_packing", folder, kernel=kernel),
        )
    except JobsError:
        return None


def _strip_sizes(config: Any) -> Any:
    """Return a config without the sizes and ids that packing does not depend on."""
    if not isinstance(config, dict):
        return config
    return {
        key: _strip_sizes(value)
        for key, value in config.items()
        if key in LIMITS or not (key.startswith("_") or key.endswith(SIZES))
    }
