"""The base as a prediction needs it: its tensors' sizes, and the widths that activations have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LOOKED_UP = ("embed_tokens", "wte", "wpe", "word_embeddings", "position_embeddings",
             "token_type_embeddings", "embed_in", "shared")  # fmt: skip
"""Parts of the names of weights that are looked up: no gradient flows back through them."""
READERS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "query_key_value",
           "c_attn", "q_lin", "k_lin", "v_lin", "Wqkv")  # fmt: skip
FIRST_NORMS = ("input_layernorm", "ln_1", "attn_norm")
"""What reads the embeddings, in the first layer: no gradient flows back through it to a frozen
base, so its weights, once gathered for the forward, are not gathered again."""
OUTPUTS = ("lm_head", "embed_out")
TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Activations that transformers writes out in many steps, each of which saves something."""


@dataclass(frozen=True)
class Widths:
    """Numbers a token makes on its way through the layers."""

    hidden: int
    layers: int
    inner: int
    """Width of the MLP; over all experts that a token visits."""
    heads: int
    """Width of all heads together."""
    head_count: int
    vocab: int
    gated: bool
    """Whether the MLP multiplies two products (gate, up) or passes one through."""
    rms: bool
    """Whether its norms are RMS norms, which save their input in float32."""
    steps: int = 2
    """Tensors of the inner width that the activation itself keeps."""


@dataclass(frozen=True)
class Base:
    """The frozen model, without the head that a task adds."""

    sizes: Mapping[str, int]
    """Numbers in every weight, by name."""
    looked_up: frozenset[str]
    tied: bool
    """Whether the output projection is the embedding once more."""
    widths: Widths
    file_bytes: int
    first: frozenset[str] = frozenset()
    """Weights that read the embeddings, and of norms before them."""

    @property
    def parameters(self) -> int:
        return sum(self.sizes.values())

    @property
    def largest(self) -> int:
        """The largest weight: what is whole at once while the rest is sharded."""
        return max(self.sizes.values(), default=0)

    def share(self, workers: int) -> int:
        """Numbers that each of so many workers holds, every weight padded to a multiple."""
        return sum(-(-size // workers) for size in self.sizes.values())

    def forward(self) -> Iterable[int]:
        """Sizes of the weights that one forward gathers, each as often as it is gathered."""
        yield from self.sizes.values()
        if self.tied:
            yield from self._embeddings()

    def backward(self) -> Iterable[int]:
        """The same for a backward, which ends where nothing below is trained."""
        below = self.looked_up | self.first
        yield from (size for name, size in self.sizes.items() if name not in below)
        if self.tied:
            yield from self._embeddings()

    def _embeddings(self) -> Iterable[int]:
        # The tokens' own table is the largest; those of positions and types are never tied.
        yield max((self.sizes[name] for name in self.looked_up), default=0)


def read_base(
    shapes: Mapping[str, tuple[int, ...]],
    linears: Mapping[str, tuple[int, int]],
    config: Mapping[str, Any],
    *,
    causal: bool,
    file_bytes: int,
) -> Base:
    """The base that these files describe."""
    looked_up = frozenset(
        name for name in shapes if any(part in LOOKED_UP for part in name.split("."))
    )
    own_output = any(part in OUTPUTS for name in shapes for part in name.split("."))
    return Base(
        sizes={name: math.prod(shape) for name, shape in shapes.items()},
        looked_up=looked_up,
        tied=causal and not own_output,
        widths=_widths(config, shapes, linears),
        file_bytes=file_bytes,
        first=frozenset(name for name in shapes if _is_first(name)),
    )


def _is_first(name: str) -> bool:
    parts = name.split(".")
    if "embeddings" in parts:
        return True
    number = next((part for part in parts if part.isdigit()), None)
    return number == "0" and any(part in READERS + FIRST_NORMS for part in parts)


def _widths(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    linears: Mapping[str, tuple[int, int]],
) -> Widths:
    """From the config, and where it is silent from the layers' own shapes."""
    hidden = _number(config, "hidden_size", "dim", "n_embd", "d_model") or _commonest(linears)
    count = _number(config, "num_attention_heads", "n_heads", "n_head") or 1
    width = _number(config, "head_dim") or hidden // count
    inner = (
        _number(config, "moe_intermediate_size", "intermediate_size", "hidden_dim", "n_inner")
        or max((max(size) for size in linears.values()), default=4 * hidden)
    )  # fmt: skip
    experts = _number(config, "num_experts_per_tok") or 1
    names = {part for name in (*shapes, *linears) for part in name.split(".")}
    act = str(config.get("hidden_act") or config.get("activation_function") or "")
    return Widths(
        hidden=hidden,
        layers=_number(config, "num_hidden_layers", "n_layers", "n_layer") or _numbered(linears),
        inner=inner * experts,
        heads=count * width,
        head_count=count,
        vocab=_number(config, "vocab_size") or 0,
        gated=bool(names & {"gate_proj", "gate_up_proj", "w1"}),
        rms=bool(_real(config, "rms_norm_eps")),
        steps=6 if act in TANH_GELU else 2,
    )


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    found = (config.get(key) for key in keys)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _real(config: Mapping[str, Any], key: str) -> float | None:
    value = config.get(key)
    return float(value) if isinstance(value, int | float) else None


def _commonest(linears: Mapping[str, tuple[int, int]]) -> int:
    widths = [columns for _, columns in linears.values()]
    return max(set(widths), key=widths.count, default=1)


def _numbered(linears: Mapping[str, tuple[int, int]]) -> int:
    """Layers told by the numbers in their names."""
    numbers = {
        tuple(name.split(".")[: place + 1])
        for name in linears
        for place, part in enumerate(name.split("."))
        if part.isdigit()
    }
    return max(1, len(numbers))
