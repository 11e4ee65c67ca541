"""Read and write an adapter's folder: LoRA as stock PEFT reads it, or the compact form.

Files are untrusted until `read_adapter` has checked their names, shapes and values.

O, I: rows and columns of a weight. R: the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from slora.errors import BadAdapter
from slora.formats.compact import (
    SPARSE_CONFIG,
    SPARSE_WEIGHTS,
    SparseAdapter,
    read_sparse,
    write_sparse,
)
from slora.formats.files import (
    LABELS,
    read_json,
    read_labels,
    read_revision,
    read_task,
    read_tensors,
    read_token_ids,
    write_files,
)
from slora.formats.peft_keys import (
    A_SUFFIX,
    B_SUFFIX,
    PEFT_PREFIX,
    TOKEN_ROWS,
    find_layer_names,
    make_factor_prefixes,
)
from slora.formats.peft_tasks import SINGLE_LABEL, TASK_TYPES
from slora.layers.factors import Factors, get_factors_shape, get_rank
from slora.layers.token_rows import SUFFIX, TokenIds

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

__all__ = [
    "LABELS",
    "PEFT_CONFIG",
    "PEFT_WEIGHTS",
    "SPARSE_CONFIG",
    "SPARSE_WEIGHTS",
    "LoraAdapter",
    "SparseAdapter",
    "make_compact",
    "make_peft_config",
    "make_peft_tensors",
    "read_adapter",
    "write_lora",
    "write_sparse",
]


@dataclass(frozen=True)
class LoraAdapter:
    """Factors (a_RI, b_OR) by layer, and the head's tensors by their name in the model.

    `rslora`: the update is scaled by alpha / sqrt(R). `conv1d`: the targets are Conv1D layers.
    `base`, `revision`: a hub id and its commit, or a folder or URL without one.
    The factors of fused experts are in the order in which their module holds the parameters.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    alpha: float
    rank: int
    base: str
    task: str
    rslora: bool = False
    conv1d: bool = False
    target_modules: tuple[str, ...] | None = None
    """Names by which PEFT finds the layers; None for their full names."""
    target_parameters: tuple[str, ...] | None = None
    """The same for the parameters of fused experts, in their module's order."""
    head_modules: tuple[str, ...] = ()
    head: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: TokenIds = field(default_factory=dict)
    """Ids of trained embedding rows by module; the rows are in the head, as `...token_rows`."""
    labels: tuple[str, ...] = ()
    problem_type: str = SINGLE_LABEL
    """What transformers calls a classifier's problem."""
    revision: str | None = None

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def experts(self) -> tuple[str, ...]:
        """Return the layers that are parameters of fused experts."""
        return tuple(
            name for name, factors in self.factors.items() if get_factors_shape(factors).experts > 1
        )


def write_lora(folder: Path, adapter: LoraAdapter) -> None:
    """Write a folder that stock PEFT, vLLM and ray.serve.llm load directly. Raise BadAdapter."""
    write_files(
        folder,
        PEFT_CONFIG,
        make_peft_config(adapter),
        PEFT_WEIGHTS,
        make_peft_tensors(adapter),
        adapter.labels,
        adapter.problem_type,
    )


def make_peft_tensors(adapter: LoraAdapter) -> dict[str, Tensor]:
    """Return the tensors of the file by their keys."""
    tensors = {
        PEFT_PREFIX + (name.removesuffix(SUFFIX) + TOKEN_ROWS if name.endswith(SUFFIX) else name): t
        for name, t in adapter.head.items()
    }
    prefixes = make_factor_prefixes(adapter.factors, adapter.experts)
    for name, factors in adapter.factors.items():
        tensors[prefixes[name] + A_SUFFIX] = factors[0]
        tensors[prefixes[name] + B_SUFFIX] = _order_for_peft(factors)
    return tensors


def make_peft_config(adapter: LoraAdapter) -> dict[str, Any]:
    """Return what PEFT's configuration file holds."""
    experts = adapter.experts
    modules = tuple(name for name in adapter.factors if name not in experts)
    if adapter.target_modules is not None:
        modules = adapter.target_modules
    parameters = experts if adapter.target_parameters is None else adapter.target_parameters
    return {
        "peft_type": "LORA",
        "task_type": TASK_TYPES[adapter.task],
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "r": adapter.rank,
        # PEFT expects an integer; a fraction stays a float.
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": adapter.conv1d,
        "use_rslora": adapter.rslora,
        "use_dora": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
        "target_parameters": list(parameters) or None,
        "modules_to_save": sorted(adapter.head_modules) or None,
        "trainable_token_indices": {name: list(ids) for name, ids in adapter.tokens.items()}
        or None,
    }


def make_compact(adapter: LoraAdapter) -> SparseAdapter:
    """Return the same adapter in the compact form."""
    return SparseAdapter(
        values={}, masks={}, factors=adapter.factors, scale=adapter.scale, base=adapter.base,
        task=adapter.task, head=adapter.head, tokens=adapter.tokens, labels=adapter.labels,
        problem_type=adapter.problem_type, revision=adapter.revision,
    )  # fmt: skip


def read_adapter(folder: Path) -> LoraAdapter | SparseAdapter:
    """Return the validated adapter of a folder. Raise BadAdapter with the file and the reason."""
    labels, problem_type = read_labels(folder)
    if (folder / PEFT_CONFIG).exists():
        return replace(_read_lora(folder, labels), problem_type=problem_type)
    if (folder / SPARSE_CONFIG).exists():
        return replace(read_sparse(folder, labels), problem_type=problem_type)
    raise BadAdapter(str(folder), f"contains neither {PEFT_CONFIG} nor {SPARSE_CONFIG}")


def _read_lora(folder: Path, labels: tuple[str, ...]) -> LoraAdapter:
    path = folder / PEFT_CONFIG
    config = read_json(path, {})
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise BadAdapter(str(path), "only plain LoRA is supported, not DoRA")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise BadAdapter(str(path), "ranks or alphas per layer are not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise BadAdapter(str(path), f"r ({rank!r}) and lora_alpha ({alpha!r}) must be numbers")
    parameters = tuple(map(str, config.get("target_parameters") or ()))
    weights_path = folder / PEFT_WEIGHTS
    factors, head = _split_lora(read_tensors(weights_path), rank, parameters, weights_path)
    saved_modules = config.get("modules_to_save") or ()
    return LoraAdapter(
        factors=factors,
        alpha=float(alpha),
        rank=rank,
        rslora=config.get("use_rslora") is True,
        conv1d=config.get("fan_in_fan_out") is True,
        base=str(config.get("base_model_name_or_path")),
        task=read_task(config, path),
        target_modules=tuple(map(str, config.get("target_modules") or ())),
        target_parameters=parameters,
        head_modules=tuple(map(str, saved_modules)),
        tokens=read_token_ids(config.get("trainable_token_indices"), head, str(path)),
        head=head,
        labels=labels,
        revision=read_revision(config),
    )


def _split_lora(
    tensors: Mapping[str, Tensor], rank: int, parameters: tuple[str, ...], path: Path
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Return the factors by layer, and the head's tensors."""
    a = {key.removesuffix(A_SUFFIX): t for key, t in tensors.items() if key.endswith(A_SUFFIX)}
    b = {key.removesuffix(B_SUFFIX): t for key, t in tensors.items() if key.endswith(B_SUFFIX)}
    head = {
        key.removeprefix(PEFT_PREFIX).replace(TOKEN_ROWS, SUFFIX): tensor
        for key, tensor in tensors.items()
        if not key.endswith((A_SUFFIX, B_SUFFIX))
    }
    if unpaired := sorted(a.keys() ^ b.keys()):
        raise BadAdapter(str(path), f"{unpaired[0]} has only one of its two factors")
    try:
        ranks = {prefix: len(tensor) for prefix, tensor in a.items() if tensor.ndim}
        names = find_layer_names(ranks, rank, parameters)
    except ValueError as error:
        raise BadAdapter(str(path), str(error)) from None
    factors = {}
    for prefix, name in names.items():
        a_RI, b_OR = a[prefix], b[prefix]
        is_pair = a_RI.ndim == b_OR.ndim == 2 and a_RI.shape[0] == b_OR.shape[1]
        experts = a_RI.shape[0] // rank
        is_stack = experts == 1 or prefix.removeprefix(PEFT_PREFIX) != name
        if not is_pair or experts * rank != a_RI.shape[0] or not is_stack:
            shapes = f"A {tuple(a_RI.shape)} and B {tuple(b_OR.shape)}"
            raise BadAdapter(str(path), f"{name}: {shapes} do not have rank {rank}")
        factors[name] = _order_from_peft((a_RI, b_OR), experts)
    return _order_experts(factors, parameters), head


def _order_experts(factors: dict[str, Factors], parameters: tuple[str, ...]) -> dict[str, Factors]:
    """Return the factors with those of each experts' module in the order of its parameters."""
    positions = {parameter.rpartition(".")[2]: i for i, parameter in enumerate(parameters)}
    experts = [name for name, pair in factors.items() if get_factors_shape(pair).experts > 1]
    experts.sort(key=lambda name: positions[name.rpartition(".")[2]])
    others = [name for name in factors if name not in set(experts)]
    return {name: factors[name] for name in (*others, *experts)}


def _order_for_peft(factors: Factors) -> Tensor:
    """Return B as PEFT stores it, `[O, R E]` with the experts innermost."""
    experts, rank = get_factors_shape(factors).experts, get_rank(factors)
    if experts == 1:
        return factors[1]
    return factors[1].view(experts, -1, rank).permute(1, 2, 0).flatten(1)


def _order_from_peft(factors: Factors, experts: int) -> Factors:
    """Return the factors with B as `[E O, R]`."""
    a_RI, b_OR = factors
    if experts == 1:
        return factors
    return a_RI, b_OR.view(b_OR.shape[0], -1, experts).permute(2, 0, 1).flatten(0, 1)
