"""A sharded base whose layers read weights past their modules, or change an output in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]
WIDE, EXPERTS = 6, 3


class TinyExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(EXPERTS, WIDE, WIDE) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return sum((torch.tanh(x @ self.up_proj[e].t()) for e in range(EXPERTS)), x)


class ForeignReader(nn.Module):
    """Reads its convolution's weight itself, as a fused kernel does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(WIDE, WIDE, 3, groups=WIDE, padding=1, bias=False)
        self.in_proj, self.out_proj = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)
        self.experts = TinyExperts()

    def forward(self, x: Tensor) -> Tensor:
        y = self.in_proj(x)
        y += 1.0  # in place, as DeBERTa does
        y = nn.functional.conv1d(y.transpose(1, 2), self.conv1d.weight, padding=1, groups=WIDE)
        return self.out_proj(self.experts(y.transpose(1, 2)))


def _train(model: nn.Module, x: Tensor, kind: str) -> dict[str, Any]:
    """Return the loss and the gradients of the method's parameters."""
    loss = model(x).square().sum()
    loss.backward()
    return {
        "loss": loss.item(),
        "gradients": {
            f"{name}.{part}": getattr(layer, part).grad.tolist()
            for name, layer in _layers(model).items()
            for part in (["values"] if kind == "sparse" else ["a_RI", "b_OR"])
        },
    }


def _layers(model: nn.Module) -> dict[str, Any]:
    from slora.layers.install import iter_adapter_layers

    return dict(iter_adapter_layers(model))


def _make(kind: str) -> nn.Module:
    from slora.layers.base_layers import get_features
    from slora.layers.install import freeze, install_lora, install_sparse
    from slora.layers.lora import init_factors
    from slora.layers.targets import find_targets
    from slora.masks.mask import draw_random_mask

    torch.manual_seed(0)
    model = ForeignReader()
    freeze(model)
    targets = find_targets(model, ["in_proj", "experts.*"], head=[])
    shapes = {name: get_features(layer) for name, layer in targets.items()}
    if kind == "sparse":
        options = {"seed": 0, "density": 0.5}
        install_sparse(
            model, {n: draw_random_mask(name=n, shape=s, **options) for n, s in shapes.items()}
        )
        return model
    factors = {n: init_factors(seed=0, name=n, shape=s, rank=2) for n, s in shapes.items()}
    install_lora(model, {n: (a, b + 0.1) for n, (a, b) in factors.items()}, scale=1.0)
    return model


def _compare(rank: int, world_size: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.model.base_shards import BaseShards

    context = make_worker_context(rank, world_size, torch.device("cpu"), machine="here")
    # As the input of a layer has that comes after an adapted one: without a gradient of its input,
    # DeepSpeed does not see the end of a module's backward, and releases its weights a step later.
    x = torch.linspace(-1, 1, 2 * 4 * WIDE).view(2, 4, WIDE).requires_grad_()
    results = []
    for kind in ("sparse", "low-rank"):
        expected = _train(_make(kind), x, kind)
        model = _make(kind)
        with BaseShards(model, "node", context).gather_on_demand():
            found = _train(model, x, kind)
            assert model.conv1d.weight.numel() == 0, "the weight is released after the step"
        results.append((expected, found))
    return results


def test_a_sharded_model_of_any_kind_trains_as_the_complete_one():
    for results in run_ranks(_compare, 2, 2):
        for expected, found in results:
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
            assert found["gradients"].keys() == expected["gradients"].keys()
            for name, gradient in expected["gradients"].items():
                actual = torch.tensor(found["gradients"][name])
                torch.testing.assert_close(actual, torch.tensor(gradient), msg=name)
