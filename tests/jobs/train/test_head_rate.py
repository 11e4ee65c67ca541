"""A head has a learning rate of its own, in every engine, and through a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import run_ranks
from tests.tiny import label_rows, tiny_encoder, tiny_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

STAGE_RATE, HEAD_RATE = 1e-3, 1e-1
CASES = ("full replicate", "full cluster", "compact", "compact local", "compact nesterov")
OUTER_RATE = 0.7 * 1.9
"""Of one outer Nesterov step from a standstill, along the mean of the workers' deltas."""


class Sorter(nn.Module):
    """A body and a head, whose name comes first: the order of the parameters is not theirs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _make_engine(case: str, context: Any) -> Any:
    from jobs.train.engine.engine import CompactEngine, EngineOptions
    from jobs.train.engine.full_engine import FullEngine

    kind, _, way = case.partition(" ")
    head = ("head",)
    if kind == "full":
        options = EngineOptions(way, False, 2, 1, 0.0, 1e9, head=head)
        return FullEngine(Sorter(), options, context)
    options = EngineOptions(
        "replicate", False, 2, 1, 0.0, 1e9, head=head, sync_every=2 if way else 1,
        outer="nesterov" if way == "nesterov" else "average",
    )  # fmt: skip
    return CompactEngine(Sorter(), options, context, None)


def _step(engine: Any, number: int) -> None:
    from jobs.train.engine.learning_rate import StepRates

    generator = torch.Generator().manual_seed(number)
    loss = (engine.model(torch.randn(8, 3, generator=generator)) ** 2).mean() / 2
    engine.backward(loss)
    rates = StepRates(STAGE_RATE, HEAD_RATE)
    engine.step(rates=rates, loss=loss.detach(), preempted=False, sync=True)


def _train_engines(rank: int, world_size: int) -> dict[str, tuple[dict[str, float], bool]]:
    """Return, for each case, the largest move of each tensor in the first step, and whether a
    resumed engine has the same bits after two more.
    """
    from jobs.train.comm.collectives import make_worker_context

    context = make_worker_context(rank, world_size, torch.device("cpu"), machine="here")
    results = {}
    for case in CASES:
        engine = _make_engine(case, context)
        before = engine.gather_weights()
        _step(engine, 0)
        weights, moments = engine.gather_weights(), engine.gather_moments()
        moves = {name: float((weights[name] - before[name]).abs().max()) for name in before}
        resumed = _make_engine(case, context)
        resumed.restore_weights(weights)
        resumed.restore_moments(moments, steps=1)
        ends = []
        for branch in (engine, resumed):
            if case.startswith("full"):
                # A run loads them into the model too, before its engine is made.
                branch.write_weights(weights)
            for number in (1, 2):
                _step(branch, number)
            ends.append(branch.gather_weights())
            branch.close()
        results[case] = moves, _are_equal(*ends)
    return results


def _are_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def engines() -> dict[str, tuple[dict[str, float], bool]]:
    return run_ranks(_train_engines, 2, 2)[0]


@pytest.mark.parametrize("case", CASES)
def test_the_first_step_of_adamw_moves_body_and_head_by_their_rates(engines, case):
    moves, _ = engines[case]
    factor = OUTER_RATE if "nesterov" in case else 1.0
    for name, move in moves.items():
        rate = HEAD_RATE if name.startswith("head.") else STAGE_RATE
        assert move == pytest.approx(rate * factor, rel=1e-3), name


@pytest.mark.parametrize("case", CASES)
def test_an_engine_that_resumes_has_the_same_bits(engines, case):
    assert engines[case][1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads")
    tiny_encoder(path / "model")
    label_rows(path / "train.jsonl", 24)
    return path


def _make_spec(folder: Path, name: str, **train: Any) -> dict[str, Any]:
    return tiny_spec(
        folder,
        name=name,
        model={"task": "sequence-classification"},
        data={"format": "classification"},
        method={"kind": "full" if "full" in name else "slora"},
        train={"checkpoint_every": 2, "head_learning_rate": 3e-2, **train},
    )


def test_a_classifier_that_died_in_any_stage_ends_with_the_same_bits(folder: Path):
    kinds = ("slora", "full")
    dying = [
        TrainingCase(f"{kind}-died", _make_spec(folder, f"{kind}-died"), dies="step 3")
        for kind in kinds
    ]
    runs = train_all(
        [
            *(TrainingCase(kind, _make_spec(folder, kind)) for kind in kinds),
            TrainingCase("other", _make_spec(folder, "other", head_learning_rate=1e-3)),
            *dying,
        ],
        1,
    )
    resumed = train_all([TrainingCase(case.run, case.spec) for case in dying], 1)
    for kind in kinds:
        tensors = [name for name in runs[kind].files if name.endswith(".safetensors")]
        assert tensors
        assert all(
            runs[kind].files[name] == resumed[f"{kind}-died"].files[name] for name in tensors
        )
    # The first loss is of a head that no step has changed yet.
    assert runs["other"].losses[0] == runs["slora"].losses[0]
    assert runs["other"].losses[-1] != runs["slora"].losses[-1]
