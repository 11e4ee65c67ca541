"""The training step of a stage: forward, backward, one exchange, AdamW. There are two engines.

`CompactEngine` trains a small part, beside a frozen base that every worker holds completely or in
shards (`base_shards`). Its gradients are exchanged as one flat vector, once a step, or once in
`sync_every` steps as the sum of each worker's own steps. Full fine-tuning has its own engine
(`full_engine`), where DeepSpeed shards the optimizer's state too.

Knows no method and no data: it takes a model whose trainable parameters are marked, and steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from jobs.train.comm.collectives import CHECKPOINT, GRADIENTS, WorkerContext
from jobs.train.engine.bucket import MOMENTS, Bucket
from jobs.train.engine.learning_rate import StepRates, set_rates
from jobs.train.engine.local_steps import LocalSteps

if TYPE_CHECKING:
    from jobs.train.model.base_shards import BaseShards

OUTER = "outer"
"""The outer optimizer's momentum, saved beside AdamW's moments if there is one."""


@dataclass(frozen=True)
class EngineOptions:
    """The options of one stage's engine."""

    sharding: str
    bfloat16: bool
    micro_batch_size: int
    accumulation: int
    weight_decay: float
    max_grad_norm: float
    exchange: torch.dtype = torch.float32
    sync_every: int = 1
    outer: str = "average"
    average: str = "factors"
    optimizer: str = "adamw"
    """adamw | sgd, which has no state."""
    head: tuple[str, ...] = ()
    """Modules that have a learning rate of their own."""


@dataclass(frozen=True)
class ExchangeResult:
    """The values that the workers exchanged, summed over them."""

    losses: tuple[float, ...]
    """The loss of each step since the last exchange."""
    preemption_notices: float
    """The number of workers that will be stopped soon."""
    average_error: float | None = None
    """The relative error of averaging the factors' products at their rank; None if none were
    averaged.
    """


class Engine(Protocol):
    """A model in training for one stage."""

    @property
    def model(self) -> Any:
        """Return the model to call."""

    @property
    def module(self) -> Any:
        """Return the model itself, for its own methods."""

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient: the sum over a step's micro-batches and workers counts."""

    def step(
        self, *, rates: StepRates, loss: Tensor, preempted: bool, sync: bool
    ) -> ExchangeResult | None:
        """End a step, with an exchange if one is due or `sync` asks for it. Return None without
        one.
        """

    def get_grad_norm(self) -> float:
        """Return the last step's gradient norm before clipping."""

    def gather_weights(self) -> dict[str, Tensor]:
        """Return the trained weights, float32 on the CPU, complete on every rank. A collective."""

    def gather_moments(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's moments by name, complete on every rank. A collective."""

    def restore_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the float32 weights, which a bfloat16 model would have rounded."""

    def restore_moments(self, moments: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        """Set saved moments, whatever the number of workers that saved them."""

    def write_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set some of the trained weights, between two steps."""

    def find_non_finite(self) -> str | None:
        """Return the first trained parameter with a weight or gradient that is NaN or infinite."""

    def close(self) -> None:
        """Release the model."""


class CompactEngine:
    """Trains a small part of a model whose base stays frozen."""

    def __init__(
        self,
        model: nn.Module,
        options: EngineOptions,
        context: WorkerContext,
        shards: BaseShards | None,
    ) -> None:
        self._model, self._options, self._context = model, options, context
        parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._bucket = Bucket(parameters, extras=options.sync_every + 3, head=options.head)
        optimizer_class = torch.optim.SGD if options.optimizer == "sgd" else torch.optim.AdamW
        self._optimizer = optimizer_class(
            self._bucket.groups, lr=0.0, weight_decay=options.weight_decay
        )
        self._local_steps = (
            LocalSteps(self._bucket, context, options.outer, options.average)
            if options.sync_every > 1
            else None
        )
        self._grad_norm, self._pending_steps = 0.0, 0
        self._non_finite_gradient: str | None = None
        self._gathering: AbstractContextManager[None] = (
            shards.gather_on_demand() if shards else nullcontext()
        )
        self._gathering.__enter__()

    @property
    def model(self) -> Any:
        return self._model

    @property
    def module(self) -> Any:
        return self._model

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        self._bucket.collect_gradients()

    def step(
        self, *, rates: StepRates, loss: Tensor, preempted: bool, sync: bool
    ) -> ExchangeResult | None:
        bucket = self._bucket
        bucket.extras[3 + self._pending_steps] = loss
        bucket.extras[0] = float(preempted)
        self._pending_steps += 1
        if self._local_steps is None:
            self._exchange()
            self._update(rates)
            return self._read_exchange()
        # The loss was divided by the targets of all workers; alone, each counts for all of them.
        bucket.gradients_n.mul_(self._context.world_size)
        self._update(rates)
        if not (sync or self._pending_steps == self._options.sync_every):
            bucket.gradients_n.zero_()
            return None
        bucket.extras[1], bucket.extras[2] = self._local_steps.write_delta(bucket.gradients_n)
        self._exchange()
        self._local_steps.apply_delta(bucket.gradients_n)
        bucket.copy_to_parameters()
        return self._read_exchange()

    def get_grad_norm(self) -> float:
        return self._grad_norm

    def gather_weights(self) -> dict[str, Tensor]:
        return self._bucket.split_by_name(self._bucket.weights_n)

    def gather_moments(self) -> dict[str, dict[str, Tensor]]:
        moments = {
            moment: self._bucket.split_by_name(self._collect_moment(moment)) for moment in MOMENTS
        }
        if self._local_steps is not None and self._local_steps.momentum_n is not None:
            moments[OUTER] = self._bucket.split_by_name(self._local_steps.momentum_n)
        return moments

    def restore_weights(self, weights: Mapping[str, Tensor]) -> None:
        self._bucket.fill(self._bucket.weights_n, weights)
        self._bucket.copy_to_parameters()
        if self._local_steps is not None:
            self._local_steps.set_anchor()

    def restore_moments(self, moments: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        parts = self._list_parts()
        states = [{"step": torch.tensor(float(steps))} for _ in parts]
        for moment in MOMENTS:
            moment_n = torch.zeros_like(self._bucket.weights_n)
            self._bucket.fill(moment_n, moments[moment])
            split = torch.split(moment_n, [part.numel() for part in parts])
            for state, values in zip(states, split, strict=True):
                state[moment] = values
        self._optimizer.state.update(zip(parts, states, strict=True))
        if (
            self._local_steps is not None
            and self._local_steps.momentum_n is not None
            and OUTER in moments
        ):
            self._bucket.fill(self._local_steps.momentum_n, moments[OUTER])

    def write_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.restore_weights(weights)

    def find_non_finite(self) -> str | None:
        name = self._bucket.find_non_finite(self._bucket.weights_n)
        return name or (
            f"the gradient of {self._non_finite_gradient}" if self._non_finite_gradient else None
        )

    def close(self) -> None:
        self._gathering.__exit__(None, None, None)
        self._bucket.release()

    def _exchange(self) -> None:
        bucket, collectives = self._bucket, self._context.collectives
        if self._options.exchange == torch.float32 or self._context.world_size == 1:
            collectives.all_reduce(bucket.exchange_buffer, GRADIENTS)
            return
        rounded = bucket.gradients_n.to(self._options.exchange)
        collectives.all_reduce(rounded, GRADIENTS)
        bucket.gradients_n.copy_(rounded)
        # The extras stay exact: they are a few bytes, and counts.
        extras = bucket.extras.clone()
        bucket.extras.copy_(collectives.all_reduce(extras, GRADIENTS))

    def _list_parts(self) -> list[Tensor]:
        """Return the parts of the vector that the optimizer has as parameters, in order."""
        return [part for group in self._optimizer.param_groups for part in group["params"]]

    def _collect_moment(self, moment: str) -> Tensor:
        """Return one of AdamW's moments `[n]`; a collective if each worker has its own.

        All workers continue with their mean then.
        """
        parts = [self._optimizer.state[part][moment] for part in self._list_parts()]
        if self._local_steps is not None:
            for part in parts:
                self._context.collectives.all_reduce(part, CHECKPOINT).div_(
                    self._context.world_size
                )
        return torch.cat(parts)

    def _update(self, rates: StepRates) -> None:
        bucket, max_norm = self._bucket, self._options.max_grad_norm
        norm = torch.linalg.vector_norm(bucket.gradients_n)
        self._grad_norm = float(norm)
        if not (math.isfinite(self._grad_norm) and bool(torch.isfinite(bucket.extras).all())):
            # The run ends here; the weights stay as they were, to locate the first non-finite
            # number.
            self._non_finite_gradient = bucket.find_non_finite(bucket.gradients_n)
            return
        if self._grad_norm > max_norm:
            bucket.gradients_n.mul_(max_norm / (norm + 1e-6))
        set_rates(self._optimizer.param_groups, rates)
        self._optimizer.step()
        bucket.copy_to_parameters()

    def _read_exchange(self) -> ExchangeResult:
        values: Sequence[float] = self._bucket.extras.tolist()
        losses = tuple(values[3 : 3 + self._pending_steps])
        self._bucket.clear()
        self._pending_steps = 0
        average_error = math.sqrt(values[1] / values[2]) if values[2] else None
        return ExchangeResult(losses, preemption_notices=values[0], average_error=average_error)
