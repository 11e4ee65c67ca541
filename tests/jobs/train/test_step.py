"""A run that diverges: the first NaN is located, and the weights stay as they were."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from jobs.plan.plan import StagePlan
from jobs.train.comm.collectives import WorkerContext
from jobs.train.data.collate import Batch
from jobs.train.data.global_batches import Step
from jobs.train.engine.engine import CompactEngine, EngineOptions
from jobs.train.engine.learning_rate import StepRates
from jobs.train.engine.step import has_diverged, locate_non_finite, make_divergence_error, take_step

CPU = torch.device("cpu")
OPTIONS = EngineOptions(
    sharding="replicate",
    bfloat16=False,
    micro_batch_size=2,
    accumulation=1,
    weight_decay=0.0,
    max_grad_norm=1.0,
)


class Classifier(nn.Module):
    """Three layers, of which one may be broken."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.second(self.first(x))))


def _step() -> Step:
    labels = torch.tensor([0, 1])
    batch = Batch(inputs={"x": torch.ones(2, 3)}, labels=labels, targets=2, tokens=6, kind="class")
    return Step(micros=(batch,), targets=2, tokens=6, rows=2)


def _engine(model: nn.Module) -> CompactEngine:
    return CompactEngine(model, OPTIONS, WorkerContext(0, 1, CPU), None)


def test_the_first_layer_whose_output_is_no_number_is_named():
    model = Classifier()
    with torch.no_grad():
        model.second.weight.fill_(float("inf"))
    engine, step = _engine(model), _step()
    exchange = take_step(engine, step, rates=StepRates(0.1, 0.1), device=CPU)
    assert exchange is not None and has_diverged(exchange.losses[0], engine.get_grad_norm())
    location = locate_non_finite(engine, step, CPU)
    assert location == "first in the output of second"
    stage = StagePlan("sparse", 6, 10, 0.1)
    failed = make_divergence_error(exchange.losses[0], 1.0, step=4, stage=stage, location=location)
    assert str(failed).startswith("step 4, sparse stage: the loss is nan, first in the output of")


def test_a_gradient_that_is_no_number_is_named_and_changes_no_weight():
    model = Classifier()
    engine, step = _engine(model), _step()
    before = engine.gather_weights()
    model.first.weight.register_hook(lambda grad: grad * float("nan"))
    exchange = take_step(engine, step, rates=StepRates(0.1, 0.1), device=CPU)
    assert exchange is not None and has_diverged(exchange.losses[0], engine.get_grad_norm())
    assert locate_non_finite(engine, step, CPU) == "first in the gradient of first.weight"
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in engine.gather_weights().items()
    )


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_has_diverged_and_another_has_not(loss):
    assert has_diverged(loss, 1.0) and has_diverged(1.0, loss)
    assert not has_diverged(1.0, 1.0)


class Held:
    """What a function of autograd keeps for its backward, as sparse layers do."""


class KeepHeld(torch.autograd.Function):
    """Return the input; the graph holds an object."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, held: Held) -> torch.Tensor:
        ctx.held = held
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0], None


class Watching(Classifier):
    """Counts at each forward what the graphs of earlier ones still hold."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.counts = list[weakref.ref[Held]](), list[int]()

    def forward(self, x: torch.Tensor) -> Any:
        self.counts.append(sum(reference() is not None for reference in self.held))
        held = Held()
        self.held.append(weakref.ref(held))
        return SimpleNamespace(logits=self.head(KeepHeld.apply(self.first(x), held)))


def test_the_graph_of_a_micro_batch_ends_before_the_next_forward():
    model = Watching()
    (batch,) = _step().micros
    step = Step(micros=(batch,) * 3, targets=6, tokens=18, rows=6)
    take_step(_engine(model), step, rates=StepRates(0.1, 0.1), device=CPU)
    assert model.counts == [0, 0, 0]
