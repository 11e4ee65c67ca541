"""The weights of a run's start are had again, to the bit, and those it has come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jobs.spec.load import validate_spec
from jobs.train.comm.collectives import WorkerContext
from jobs.train.engine.engine import CompactEngine, EngineOptions
from jobs.train.engine.learning_rate import StepRates
from jobs.train.engine.start_weights import keep_start_weights

OPTIONS = EngineOptions("replicate", False, 1, 1, 0.0, 1.0)


def make_spec(**changes):
    method = {"kind": "lora", **changes.pop("method", {})}
    spec = {"name": "a", "model": {"path": "m"}, "data": {"train": "x.jsonl"}, "method": method,
            "train": {"steps": 4}, **changes}  # fmt: skip
    return validate_spec(spec)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def engine(request) -> CompactEngine:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).to(request.param)
    return CompactEngine(model, OPTIONS, WorkerContext(0, 1, torch.device("cpu")), None)


def take_step(engine: CompactEngine) -> None:
    x = torch.ones(4, 3, dtype=engine.module.weight.dtype)
    loss = (engine.module(x).float() ** 2).mean()
    engine.backward(loss)
    engine.step(rates=StepRates(0.1, 0.1), loss=loss.detach(), preempted=False, sync=True)


def copy_weights(engine: CompactEngine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.module.state_dict().items()}


def test_a_visit_gives_the_weights_of_the_start_and_training_continues_as_without_it(engine):
    before = copy_weights(engine)
    start = keep_start_weights(make_spec(), engine)
    assert start is not None
    take_step(engine)
    trained, master = copy_weights(engine), engine.gather_weights()
    with start.revisit():
        visited = copy_weights(engine)
    assert all(torch.equal(visited[name], before[name]) for name in before)
    assert not any(torch.equal(trained[name], before[name]) for name in before)
    back, restored = copy_weights(engine), engine.gather_weights()
    assert all(torch.equal(back[name], trained[name]) for name in trained)
    assert all(torch.equal(restored[name], master[name]) for name in master)


def test_the_weights_come_back_where_the_visit_fails(engine):
    start = keep_start_weights(make_spec(), engine)
    take_step(engine)
    trained = copy_weights(engine)
    assert start is not None
    with pytest.raises(ZeroDivisionError), start.revisit():
        raise ZeroDivisionError
    assert all(torch.equal(value, trained[name]) for name, value in copy_weights(engine).items())


def test_a_start_that_can_not_be_had_again_is_not_kept(engine):
    local_steps = make_spec(cluster={"sync_every": 4})
    gated = make_spec(method={"factor_density": 0.5, "factor_pruning": "gates"})
    assert keep_start_weights(local_steps, engine) is None
    assert keep_start_weights(gated, engine) is None
    assert keep_start_weights(make_spec(), object()) is None  # type: ignore[arg-type]
