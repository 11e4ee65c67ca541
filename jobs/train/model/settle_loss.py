"""How the loss of a run's tokens is computed, settled when its model is loaded.

A model may do more with its projection's output than return it: cap, scale, shift. What it does is
read off its own code, which is run on numbers in place of that output; then a few tokens have their
loss computed in chunks, and from all logits. Where the two differ the loss stays plain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jobs.spec.schema import RunSpec
from jobs.train.comm.collectives import INSTALL, WorkerContext
from jobs.train.data.collate import Batch, Collator
from jobs.train.data.model_inputs import explain_plain_loss, make_model_inputs
from jobs.train.data.packing import join_samples
from jobs.train.engine.chunked_loss import FLOAT32, PLAIN_LOSS, LogitTransform, LossChoice
from jobs.train.engine.loss import compute_token_loss
from jobs.train.model.packing_probe import draw_sample

if TYPE_CHECKING:
    from jobs.train.model.base_shards import BaseShards

ROWS, ROW_LENGTH = 2, 9
PROBE_CHUNK_ROWS = 5
"""Fewer than the targets, and no divisor of them."""
ERROR_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Bounds of the loss's relative error. In bfloat16 products of other shapes round differently."""
MAGNITUDES = (0.0, 1e-3, 1.0, 30.0, 1e4)
"""Of the numbers that a transform is read off: from what a cap leaves alone to what it cuts off."""
TRANSFORM_TOLERANCE = 2e-6


class NotChunkableError(Exception):
    """The reason why the loss of a model can't be computed in chunks."""


def settle_loss(
    spec: RunSpec,
    model: Any,
    context: WorkerContext,
    *,
    shards: BaseShards | None = None,
    chunk_bytes: int = 0,
) -> LossChoice:
    """Return how the loss is computed with this model, the same on every rank. A collective.

    `chunk_bytes` are for tests whose models are too small to need chunks.
    """
    if spec.target_kind not in ("tokens", "completion"):
        return replace(PLAIN_LOSS, reason="a classifier has few logits")
    micro, length = spec.train.micro_batch_size, spec.data.max_length
    if problem := explain_plain_loss(model, spec.target_kind):
        return replace(PLAIN_LOSS, reason=f"{type(model).__name__} {problem}")
    vocabulary = _count_outputs(model.get_output_embeddings())
    choice = LossChoice(True, "", chunk_bytes=chunk_bytes)
    if vocabulary and micro * length <= choice.count_rows(vocabulary, context.device):
        return replace(PLAIN_LOSS, reason="all logits of a micro-batch are one chunk")
    with context.collectives.attribute_to(INSTALL), _gather(shards):
        choice = probe_loss(model, context.device, kind=spec.target_kind, chunk_bytes=chunk_bytes)
    failures = torch.tensor([0.0 if choice.is_chunked else 1.0], device=context.device)
    if context.collectives.all_reduce(failures, INSTALL).item() and choice.is_chunked:
        return replace(PLAIN_LOSS, reason="another worker can't compute it in chunks")
    return choice


def probe_loss(
    model: Any, device: torch.device, *, kind: str = "tokens", chunk_bytes: int = 0
) -> LossChoice:
    """Return the choice for a model, from its loss of a few tokens."""
    name = type(model).__name__
    batch = _make_batch(model, kind)
    try:
        transform = _read_transform(model, batch, device)
        _confirm(model, batch, transform, device)
    except NotChunkableError as problem:
        return replace(PLAIN_LOSS, reason=f"{name} {problem}")
    # A model that reads its logits' shape, or calls its projection otherwise, raises what it likes.
    except Exception as error:
        return replace(PLAIN_LOSS, reason=f"{name} fails without its logits: {error!r}"[:300])
    reason = "the hidden states of the targets alone meet the output projection"
    return LossChoice(True, reason, transform, chunk_bytes)


def _gather(shards: BaseShards | None) -> AbstractContextManager[None]:
    return nullcontext() if shards is None else shards.gather_on_demand()


def _count_outputs(projection: Any) -> int:
    weight = getattr(projection, "weight", None)
    return 0 if weight is None else int(getattr(weight, "ds_shape", weight.shape)[0])


def _make_batch(model: Any, kind: str) -> Batch:
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    rows = [join_samples([draw_sample(ROW_LENGTH, vocabulary, generator)]) for _ in range(ROWS)]
    batch = Collator(0, "off", "tokens", False)(rows, length=ROW_LENGTH)
    if kind != "completion":
        return batch
    # The first label stands for the start of the answer: see `jobs.train.data.tokenization`.
    return replace(batch, kind="completion", inputs={**batch.inputs, "labels": batch.labels})


def _read_transform(model: Any, batch: Batch, device: torch.device) -> LogitTransform:
    """Return what the model does to its projection's output. Raise NotChunkableError."""
    if problem := explain_plain_loss(model, batch.kind):
        raise NotChunkableError(problem)
    logits, call = _run(model, batch, device)
    if call.x.shape[:-1] != batch.labels.shape or logits.shape != call.output.shape:
        raise NotChunkableError("does not pass one hidden state a token to its output projection")
    if logits.requires_grad:
        raise NotChunkableError("has trained weights after its output projection")
    if torch.equal(logits, call.output):
        return LogitTransform()
    probe = _draw_outputs(call.output)
    return _fit_transform(probe, _run(model, batch, device, output=probe)[0].float())


def _run(
    model: Any, batch: Batch, device: torch.device, *, output: Tensor | None = None
) -> tuple[Tensor, _Call]:
    """Return the logits, which have a gradient only if weights behind the projection have one.

    Raise NotChunkableError unless the projection is called once; it gives out `output`, if any.
    """
    calls: list[_Call] = []
    inputs = make_model_inputs(model, batch, device=device)
    with torch.enable_grad(), _observe(model.get_output_embeddings(), calls, output=output):
        logits: Tensor = model(**inputs).logits
    if len(calls) != 1:
        raise NotChunkableError(f"calls its output projection {len(calls)} times")
    return logits, calls[0]


@dataclass(frozen=True)
class _Call:
    x: Tensor
    output: Tensor


@contextmanager
def _observe(
    projection: nn.Module, calls: list[_Call], *, output: Tensor | None = None
) -> Iterator[None]:
    """Inside the block, record the projection's calls; it gives out `output`, or its own without a
    gradient.
    """

    def hook(module: nn.Module, args: tuple[Tensor, ...], own_output: Tensor) -> Tensor:
        calls.append(_Call(args[0].detach(), own_output.detach()))
        return own_output.detach() if output is None else output

    handle = projection.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _draw_outputs(like: Tensor) -> Tensor:
    """Return numbers of the magnitudes, position by position, in float32."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(like.shape, generator=generator).to(like.device)
    sizes = torch.tensor(MAGNITUDES, device=like.device)
    return output * sizes[torch.arange(like.shape[1], device=like.device) % len(sizes)][:, None]


def _fit_transform(z: Tensor, logits: Tensor) -> LogitTransform:
    """Return the transform that takes z to the logits. Raise NotChunkableError if none does."""
    offset = logits[0, 0]
    bias = offset if bool(offset.any()) else None
    inner = logits if bias is None else logits - bias
    factors = [
        float(inner[:, t].double().norm() / z[:, t].double().norm())
        for t in range(1, len(MAGNITUDES))
    ]
    is_capped = factors[-1] < 0.5 * factors[0]
    # A cap leaves small numbers alone; of others, beside a bias, large ones have more digits left.
    scale, cap = factors[0 if is_capped else -1], float(inner.abs().max())
    transform = LogitTransform(_round(scale), _round(cap) if is_capped else None, bias)
    error = (transform.apply(z) - logits).abs()
    if not bool((error <= TRANSFORM_TOLERANCE * logits.abs().clamp_min(1.0)).all()):
        raise NotChunkableError("changes its logits in a way of its own")
    return transform


def _round(value: float) -> float:
    """Return the value without the rounding of the float32 that it was read from, if it is one of
    few digits or the inverse of one.
    """
    candidates = [round(value, 4)]
    if value and round(1 / value, 4):
        candidates.append(1 / round(1 / value, 4))
    near = (candidate for candidate in candidates if abs(candidate - value) < 1e-6 * abs(value))
    return next(near, value)


def _confirm(model: Any, batch: Batch, transform: LogitTransform, device: torch.device) -> None:
    """Compare the loss in chunks with the plain one. Raise NotChunkableError."""
    vocabulary = _count_outputs(model.get_output_embeddings()) or 1
    chunked = LossChoice(True, "", transform, PROBE_CHUNK_ROWS * vocabulary * FLOAT32)
    losses = []
    with torch.no_grad():
        for choice in (PLAIN_LOSS, chunked):
            losses.append(float(compute_token_loss(model, batch, choice, device=device)))
    plain, own = losses
    if not abs(own - plain) <= ERROR_BOUNDS.get(model.dtype, 1e-2) * abs(plain):
        raise NotChunkableError(f"has a loss of {own:.6g} in chunks, and {plain:.6g} without")
