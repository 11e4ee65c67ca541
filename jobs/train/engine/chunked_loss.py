"""The cross-entropy of tokens in chunks: the logits of all targets never exist at once.

The loss is computed where the model calls its output projection: there the hidden states are at
hand, a sharded weight is gathered, and positions without a target drop out before the widest
product of the model. The gradient of the hidden states is computed chunk by chunk beside the loss,
as `torch.nn.functional.linear_cross_entropy` does. That function is not used: it rounds the sum of
bfloat16 to bfloat16, and knows no projection but a complete weight, and no capped logits.

N: targets; n: targets of a chunk; I: width of the hidden states; V: vocabulary; m: sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jobs.plan.estimate.activations import LOSS_CHUNK
from jobs.train.data.tokenization import IGNORE_INDEX

FLOAT32 = 4


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the output of its projection: `cap tanh(scale z / cap) + bias`."""

    scale: float = 1.0
    cap: float | None = None
    bias_V: Tensor | None = None

    @property
    def is_identity(self) -> bool:
        """Return whether the output of the projection is the logits."""
        return self.scale == 1.0 and self.cap is None and self.bias_V is None

    def apply(self, z_nV: Tensor) -> Tensor:
        """Return the logits, float32."""
        logits = z_nV.float() if self.scale == 1.0 else z_nV.float() * self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits if self.bias_V is None else logits + self.bias_V.to(logits)


@dataclass(frozen=True)
class LossChoice:
    """How the loss of a run's tokens is computed, and why: in chunks, or from all logits."""

    is_chunked: bool
    reason: str
    transform: LogitTransform = field(default_factory=LogitTransform)
    chunk_bytes: int = 0
    """Upper bound of a chunk's logits in float32, unless one row exceeds it; 0 means the device's
    own.
    """

    def describe(self) -> dict[str, str]:
        """Return the choice for an event."""
        return {"mode": "chunks" if self.is_chunked else "plain", "reason": self.reason}

    def count_rows(self, vocabulary: int, device: torch.device) -> int:
        """Return the targets of a chunk."""
        chunk_bytes = self.chunk_bytes or LOSS_CHUNK["cpu" if device.type == "cpu" else "gpu"]
        return max(1, chunk_bytes // (vocabulary * FLOAT32))


PLAIN_LOSS = LossChoice(False, "all logits at once")


def sum_chunked_loss(
    model: Any,
    inputs: dict[str, Any],
    labels: Tensor,
    choice: LossChoice,
    *,
    unwrapped_model: Any,
) -> Tensor:
    """Return the loss summed over the targets, a float32 scalar.

    `labels` [m, K] belong to the first K hidden states of each sequence.
    """
    losses: list[Tensor] = []
    with _replace_projection(unwrapped_model.get_output_embeddings(), labels, choice, losses):
        model(**inputs)
    if len(losses) != 1:
        raise RuntimeError(f"the output projection was called {len(losses)} times")
    return losses[0]


@contextmanager
def _replace_projection(
    projection: nn.Module, labels: Tensor, choice: LossChoice, losses: list[Tensor]
) -> Iterator[None]:
    """Inside the block, let the projection compute the loss in place of the logits.

    The model gets zeros of one position instead, that take no memory.
    """
    project, own_forward = projection.forward, projection.__dict__.get("forward")
    stand_ins: list[Tensor] = []

    def compute(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden = x[..., : labels.shape[-1], :]
        if hidden.shape[:-1] != labels.shape:
            raise RuntimeError(
                f"hidden states {tuple(x.shape)} do not fit labels {tuple(labels.shape)}"
            )
        is_target = labels != IGNORE_INDEX
        empty_V = project(x.detach()[..., :0, :])
        stand_ins.append(
            torch.zeros((), dtype=empty_V.dtype, device=x.device).expand(
                *x.shape[:-2], 1, empty_V.shape[-1]
            )
        )
        # A module's hooks may take its output for the start of its backward: it is the loss itself.
        return _sum_chunks(projection, project, hidden[is_target], labels[is_target], choice)

    def swap(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        losses.append(output)
        return stand_ins.pop()

    projection.forward = compute
    # After all other hooks, so that those see the loss, with what they make of it.
    handle = projection.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()
        del projection.forward
        if own_forward is not None:
            projection.forward = own_forward


Project = Callable[[Tensor], Tensor]


def _sum_chunks(
    projection: nn.Module, project: Project, x_NI: Tensor, labels_N: Tensor, choice: LossChoice
) -> Tensor:
    with torch.enable_grad():
        empty = project(x_NI.detach()[:0])
    trained = _list_leaves(empty) if torch.is_grad_enabled() else []
    rows = choice.count_rows(empty.shape[-1], x_NI.device)
    product: _GraphProduct = _GraphProduct(project, trained)
    if type(projection) is nn.Linear and any(leaf is projection.weight for leaf in trained):
        product = _LinearProduct(projection, trained)
    loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        x_NI, labels_N, product, rows, choice.transform, *trained
    )
    return loss


def _list_leaves(output: Tensor) -> list[Tensor]:
    """Return the trained parameters that an output depends on, each once."""
    leaves: dict[int, Tensor] = {}
    visited, pending = set[Any](), [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        pending += [following for following, _ in node.next_functions]
    return list(leaves.values())


class _GraphProduct:
    """A projection of any kind: autograd computes the gradients, each chunk's as a tensor."""

    def __init__(self, project: Project, trained: Sequence[Tensor]) -> None:
        self._project, self._trained = project, trained

    def multiply(self, x_nI: Tensor, *, needs_grad: bool) -> Tensor:
        """Return [n, V], with its graph if a gradient is needed."""
        with torch.set_grad_enabled(needs_grad):
            return self._project(x_nI)

    def add_gradients(
        self, z_nV: Tensor, x_nI: Tensor, grad_nV: Tensor, sums: Sequence[Tensor]
    ) -> Tensor | None:
        """Add the trained parameters' gradients to the sums. Return that of x, or None."""
        inputs = [x_nI] if x_nI.requires_grad else []
        grads = torch.autograd.grad(z_nV, [*inputs, *self._trained], grad_nV, allow_unused=True)
        for total, grad in zip(sums, grads[len(inputs) :], strict=True):
            if grad is not None:
                total.add_(grad)
        return grads[0] if inputs else None


class _LinearProduct(_GraphProduct):
    """A linear layer whose weight is trained: its gradient is summed in place, as it is wide."""

    def __init__(self, layer: nn.Linear, trained: Sequence[Tensor]) -> None:
        super().__init__(layer.forward, trained)
        self._layer = layer

    def multiply(self, x_nI: Tensor, *, needs_grad: bool) -> Tensor:
        layer, bias = self._layer, self._layer.bias
        with torch.no_grad():
            return nn.functional.linear(x_nI, layer.weight, bias)

    def add_gradients(
        self, z_nV: Tensor, x_nI: Tensor, grad_nV: Tensor, sums: Sequence[Tensor]
    ) -> Tensor | None:
        weight = self._layer.weight
        x, grad = x_nI.detach(), grad_nV
        for leaf, total in zip(self._trained, sums, strict=True):
            if leaf is not weight:
                total.add_(grad.sum(0))
            elif total.dtype == x.dtype == grad.dtype:
                total.addmm_(grad.t(), x)
            else:
                total.add_(grad.t() @ x.to(grad.dtype))
        return grad @ weight.to(grad.dtype) if x_nI.requires_grad else None


class _ChunkedLoss(torch.autograd.Function):
    """The sum of the cross-entropies, `[N, I]` to a float32 scalar.

    The gradients are computed in the forward, for a gradient of 1, and saved: that of x in its
    dtype, those of trained parameters in float32, however many chunks they are the sum of.
    """

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, labels_N: Tensor, product: _GraphProduct, rows: int,
                transform: LogitTransform, *trained: Tensor) -> Tensor:  # fmt: skip
        needs_x, needs_grad = ctx.needs_input_grad[0], any(ctx.needs_input_grad)
        total = torch.zeros((), device=x_NI.device)
        grad_NI = torch.empty_like(x_NI) if needs_x else None
        sums = [torch.zeros_like(leaf, dtype=torch.float32) for leaf in trained]
        # Chunks of one size: a last one of a few rows would leave its piece in the heap.
        rows = -(-len(x_NI) // max(1, -(-len(x_NI) // rows)))
        for start in range(0, len(x_NI), max(1, rows)):
            part = slice(start, start + rows)
            x_nI = x_NI[part].detach().requires_grad_(needs_x)
            z_nV = product.multiply(x_nI, needs_grad=needs_grad)
            loss, grad_nV = compute_cross_entropy(
                z_nV.detach(), labels_N[part], transform, needs_grad=needs_grad
            )
            total += loss
            if grad_nV is not None:
                grad_nI = product.add_gradients(z_nV, x_nI, grad_nV, sums)
                if grad_NI is not None and grad_nI is not None:
                    grad_NI[part] = grad_nI
        ctx.save_for_backward(grad_NI, *(s.to(t.dtype) for s, t in zip(sums, trained, strict=True)))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_NI, *sums = (saved if saved is None else saved * grad for saved in ctx.saved_tensors)
        return grad_NI, None, None, None, None, *sums


def compute_cross_entropy(
    z_nV: Tensor, labels_n: Tensor, transform: LogitTransform, *, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the sum of the cross-entropies, and their gradient for z in its dtype.

    The softmax is float32. Beside z one tensor of its size is allocated, or three with a transform.
    """
    if transform.is_identity:
        loss, grad_nV = _compute_from_logits(z_nV, labels_n, needs_grad=needs_grad)
        return loss, None if grad_nV is None else grad_nV.to(z_nV.dtype)
    with torch.set_grad_enabled(needs_grad):
        z_nV.requires_grad_(needs_grad)
        logits = transform.apply(z_nV)
    loss, grad_nV = _compute_from_logits(logits.detach(), labels_n, needs_grad=needs_grad)
    if grad_nV is None:
        return loss, None
    return loss, torch.autograd.grad(logits, z_nV, grad_nV)[0]


def _compute_from_logits(
    logits_nV: Tensor, labels_n: Tensor, *, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    log_p_nV = torch.log_softmax(logits_nV, -1, dtype=torch.float32)
    labels_n1 = labels_n[:, None]
    loss = -log_p_nV.gather(1, labels_n1).sum()
    if not needs_grad:
        return loss, None
    # The gradient of the logits is the softmax, less 1 at the label.
    grad_nV = log_p_nV.exp_()
    grad_nV.scatter_add_(1, labels_n1, grad_nV.new_full(labels_n1.shape, -1.0))
    return loss, grad_nV
