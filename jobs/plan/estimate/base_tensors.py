"""The base as the estimate needs it: the sizes of its tensors and the widths of activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.inspect.encoder_decoders import is_encoder_decoder

EMBEDDING_NAMES = ("embed_tokens", "wte", "wpe", "word_embeddings", "position_embeddings",
             "token_type_embeddings", "embed_in", "shared", "embed_positions",
             "relative_attention_bias")  # fmt: skip
"""Parts of the names of embeddings: no gradient flows back through a lookup."""
INPUT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value",
                     "query_key_value", "c_attn", "q_lin", "k_lin", "v_lin", "Wqkv")  # fmt: skip
FIRST_NORMS = ("input_layernorm", "ln_1", "attn_norm")
"""Norms and projections of the first layer read the embeddings: no gradient flows back through them
to a frozen base, so their weights are gathered for the forward only."""
OUTPUTS = ("lm_head", "embed_out")
CROSS_ATTENTION = {"encoder_attn", "EncDecAttention", "crossattention"}
"""Attention of a decoder to its encoder, whose layers are trained."""
TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Activations that transformers computes in many operations, each of which saves a tensor."""


@dataclass(frozen=True)
class Widths:
    """The widths of a token's activations."""

    hidden: int
    layers: int
    inner: int
    """Width of the MLP, summed over the experts that a token visits."""
    heads_width: int
    """Width of all heads together."""
    head_count: int
    vocab: int
    gated: bool
    """The MLP multiplies two projections (gate, up) instead of using one."""
    rms: bool
    """The norms are RMS norms, which save their input in float32."""
    activation_copies: int = 2
    """Tensors of the inner width that the activation function saves."""


@dataclass(frozen=True)
class BaseFacts:
    """The frozen model, without the head that a task adds."""

    sizes: Mapping[str, int]
    """Parameters of every weight, by name."""
    embeddings: frozenset[str]
    tied: bool
    """The output projection shares the embedding's weight."""
    widths: Widths
    file_bytes: int
    first_layer: frozenset[str] = frozenset()
    """Weights that read the embeddings, and the norms before them."""
    lookups: int = 1
    """How often the embedding is read: by an encoder and a decoder that share it, twice."""

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(self.sizes.values())

    @property
    def largest(self) -> int:
        """Return the size of the largest weight, which is gathered at once."""
        return max(self.sizes.values(), default=0)

    def count_per_worker(self, workers: int) -> int:
        """Count the parameters per worker, with weights padded to a multiple of the workers."""
        return sum(-(-size // workers) for size in self.sizes.values())

    def iter_forward(self) -> Iterable[int]:
        """Iterate over the sizes of the weights that a forward gathers, once per gather."""
        yield from self.sizes.values()
        for _ in range(self.lookups - 1 + self.tied):
            yield from self._iter_embeddings()

    def iter_backward(self) -> Iterable[int]:
        """Iterate over the sizes that a backward gathers: it ends below the last trained layer."""
        gradient_free = self.embeddings | self.first_layer
        yield from (size for name, size in self.sizes.items() if name not in gradient_free)
        if self.tied:
            yield from self._iter_embeddings()

    def _iter_embeddings(self) -> Iterable[int]:
        # The token embedding is the largest; those of positions and types are never tied.
        yield max((self.sizes[name] for name in self.embeddings), default=0)


def describe_base(
    shapes: Mapping[str, tuple[int, ...]],
    linears: Mapping[str, tuple[int, int]],
    config: Mapping[str, Any],
    *,
    has_logits: bool,
    file_bytes: int,
) -> BaseFacts:
    """Describe the base from the headers and the config of its files. `has_logits`: it predicts
    tokens.
    """
    embeddings = frozenset(
        name for name in shapes if any(part in EMBEDDING_NAMES for part in name.split("."))
    )
    has_output = any(part in OUTPUTS for name in shapes for part in name.split("."))
    return BaseFacts(
        sizes={name: math.prod(shape) for name, shape in shapes.items()},
        embeddings=embeddings,
        tied=has_logits and not has_output,
        widths=_read_widths(config, shapes, linears),
        file_bytes=file_bytes,
        first_layer=frozenset(name for name in shapes if _is_first(name)),
        lookups=2 if is_encoder_decoder(config) else 1,
    )


def _is_first(name: str) -> bool:
    parts = name.split(".")
    if "embeddings" in parts or "layernorm_embedding" in parts:
        return True
    if CROSS_ATTENTION & {*parts}:
        return False
    if parts[-3:-1] in (["SelfAttention", "q"], ["SelfAttention", "k"], ["SelfAttention", "v"]):
        return "block.0.layer.0." in name
    number = next((part for part in parts if part.isdigit()), None)
    return number == "0" and any(part in INPUT_PROJECTIONS + FIRST_NORMS for part in parts)


def _read_widths(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    linears: Mapping[str, tuple[int, int]],
) -> Widths:
    """Read the widths from the config, or from the shapes of the layers where it has none."""
    hidden = find_hidden_size(config, linears)
    head_count = (
        _get_int(config, "num_attention_heads", "n_heads", "n_head", "encoder_attention_heads",
                 "num_heads") or 1
    )  # fmt: skip
    head_width = _get_int(config, "head_dim", "d_kv") or hidden // head_count
    inner = (
        _get_int(config, "moe_intermediate_size", "intermediate_size", "hidden_dim", "n_inner",
                 "encoder_ffn_dim", "d_ff")
        or max((max(size) for size in linears.values()), default=4 * hidden)
    )  # fmt: skip
    experts = _get_int(config, "num_experts_per_tok") or 1
    names = {part for name in (*shapes, *linears) for part in name.split(".")}
    activation = str(config.get("hidden_act") or config.get("activation_function") or "")
    return Widths(
        hidden=hidden,
        layers=_count_both_sides(config)
        or _get_int(config, "num_hidden_layers", "n_layers", "n_layer")
        or _count_layers(linears),
        inner=inner * experts,
        heads_width=head_count * head_width,
        head_count=head_count,
        vocab=_get_int(config, "vocab_size") or 0,
        gated=bool(names & {"gate_proj", "gate_up_proj", "w1", "wi_0"}),
        # T5's norms are RMS norms too.
        rms=bool(_get_float(config, "rms_norm_eps")) or "relative_attention_num_buckets" in config,
        activation_copies=6 if activation in TANH_GELU else 2,
    )


def find_hidden_size(config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> int:
    """Return the width of the hidden states: the config's, or the most frequent of the layers."""
    return _get_int(config, "hidden_size", "dim", "n_embd", "d_model") or _guess_hidden_size(
        linears
    )


def _count_both_sides(config: Mapping[str, Any]) -> int | None:
    """Count the layers of an encoder and of its decoder; a decoder's counts twice: it attends to
    itself and to the encoder. None for another model.
    """
    if not is_encoder_decoder(config):
        return None
    encoder = _get_int(config, "encoder_layers", "num_encoder_layers", "num_layers")
    decoder = _get_int(config, "decoder_layers", "num_decoder_layers") or encoder
    return encoder + 2 * decoder if encoder and decoder else None


def _get_int(config: Mapping[str, Any], *keys: str) -> int | None:
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _get_float(config: Mapping[str, Any], key: str) -> float | None:
    value = config.get(key)
    return float(value) if isinstance(value, int | float) else None


def _guess_hidden_size(linears: Mapping[str, tuple[int, int]]) -> int:
    widths = [columns for _, columns in linears.values()]
    return max(set(widths), key=widths.count, default=1)


def _count_layers(linears: Mapping[str, tuple[int, int]]) -> int:
    """Count the layers by the numbers in their names."""
    numbers = {
        tuple(name.split(".")[: index + 1])
        for name in linears
        for index, part in enumerate(name.split("."))
        if part.isdigit()
    }
    return max(1, len(numbers))
