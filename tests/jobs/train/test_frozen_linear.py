"""Linear layers of a sharded base: the same product, and no gathered weight saved for backward."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]
WIDE, NARROW = 96, 8


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(NARROW, NARROW), nn.Linear(NARROW, WIDE))
    return model.requires_grad_(False)


def _gradient(rank: int, world_size: int, *, own: bool) -> dict[str, Any]:
    """Return the gradient of the input, and the most bytes that a tensor saved for backward has."""
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.model import base_shards

    if not own:
        base_shards.drop_gathered_weights = lambda model: nullcontext()  # type: ignore[assignment]
    model, saved = _model(), list[torch.Tensor]()
    x = torch.arange(3.0 * NARROW).reshape(3, NARROW).requires_grad_()
    _model()(x).square().sum().backward()
    expected, x.grad = x.grad, None
    team = make_worker_context(rank, world_size, torch.device("cpu"), machine="here")
    shards = base_shards.BaseShards(model, "node", team)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with shards.gather_on_demand():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(x).square().sum()
        held = max(tensor.untyped_storage().nbytes() for tensor in saved)
        loss.backward()
    assert "forward" not in vars(model[1])
    return {"wanted": expected.tolist(), "found": x.grad.tolist(), "held": held}


def _both(rank: int, world_size: int) -> list[dict[str, Any]]:
    return [_gradient(rank, world_size, own=own) for own in (True, False)]


def test_a_gathered_weight_is_not_saved_from_forward_to_backward():
    full_size = 4 * WIDE * NARROW
    for own, torch_s in run_ranks(_both, 2, 2):
        torch.testing.assert_close(torch.tensor(own["found"]), torch.tensor(own["wanted"]))
        assert own["held"] < full_size
        # Otherwise the test would show nothing: torch's own product saves it.
        assert torch_s["held"] >= full_size


def _weight_gradient(rank: int, world_size: int) -> dict[str, Any]:
    """Return the gradient of the wide layer's own weight, while the shards are gathered."""
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.model.base_shards import BaseShards

    x = torch.arange(3.0 * NARROW).reshape(3, NARROW)
    plain = _model()
    plain[1].weight.requires_grad_(True)
    plain(x).square().sum().backward()
    model = _model()
    shards = BaseShards(
        model, "node", make_worker_context(rank, world_size, torch.device("cpu"), machine="h")
    )
    gradients = list[list[list[float]]]()
    model[1].weight.requires_grad_(True)
    model[1].weight.register_post_accumulate_grad_hook(
        lambda parameter: gradients.append(parameter.grad.tolist())
    )
    with shards.gather_on_demand():
        model(x).square().sum().backward()
    return {"wanted": plain[1].weight.grad.tolist(), "found": gradients}


def test_a_mask_s_scores_get_the_weight_s_gradient():
    for result in run_ranks(_weight_gradient, 2, 2):
        torch.testing.assert_close(torch.tensor(result["found"]), torch.tensor([result["wanted"]]))
