"""Scores from gradients: exact sums, a bounded number of layers at once, an unchanged model."""

from __future__ import annotations

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from slora.errors import BadMask
from slora.masks.registry import SCORERS
from slora.masks.scoring import compute_mean_gradients, group_layers, score_layers


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 6), Conv1D(3, 6)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def _make_pass(model, batches):
    calls = []

    def run_pass() -> int:
        calls.append(1)
        for x in batches:
            model(x).square().sum().backward()
        model.zero_grad(set_to_none=True)
        return len(batches)

    return run_pass, calls


@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_those_of_the_dense_gradients(net, name):
    batches = [torch.randn(5, 4) for _ in range(3)]
    run_pass, _ = _make_pass(net, batches)
    layers = {"first": net.first, "second": net.second}
    scores = dict(score_layers(layers, SCORERS[name], run_pass))
    for key, layer in layers.items():
        gradients = []
        for x in batches:
            layer.weight.requires_grad_(True)
            (grad,) = torch.autograd.grad(net(x).square().sum(), layer.weight)
            gradients.append(grad.t() if key == "second" else grad)
        weight = (layer.weight.t() if key == "second" else layer.weight).detach()
        score = SCORERS[name]
        total = torch.stack([score.unit(weight, g).double() for g in gradients]).sum(0) if (
            score.unit) else None  # fmt: skip
        torch.testing.assert_close(scores[key], score.finish(weight, total, 3).float())
        assert scores[key].shape == weight.shape


def test_gradients_are_their_mean_over_the_sequences(net):
    batches = [torch.randn(5, 4) for _ in range(2)]
    run_pass, _ = _make_pass(net, batches)
    scores = dict(compute_mean_gradients({"first": net.first}, run_pass))
    net.first.weight.requires_grad_(True)
    expected = sum(torch.autograd.grad(net(x).square().sum(), net.first.weight)[0] for x in batches)
    torch.testing.assert_close(scores["first"], expected / 2)


def test_the_order_of_the_sequences_changes_no_bit(net):
    batches = [torch.randn(5, 4) * 10.0**n for n in range(-3, 4)]
    layers = {"first": net.first, "second": net.second}
    forwards = dict(score_layers(layers, SCORERS["gradient"], _make_pass(net, batches)[0]))
    back = dict(score_layers(layers, SCORERS["gradient"], _make_pass(net, batches[::-1])[0]))
    for name in layers:
        assert torch.equal(forwards[name], back[name])


def test_layers_come_in_groups_of_at_most_half_of_all(net):
    layers = {str(n): torch.nn.Linear(8, 8) for n in range(6)}
    scores = list(group_layers(layers))
    assert [list(group) for group in scores] == [["0", "1", "2"], ["3", "4", "5"]]
    run_pass, calls = _make_pass(net, [torch.randn(2, 4)])
    list(score_layers({"first": net.first, "second": net.second}, SCORERS["fisher"], run_pass))
    assert len(calls) == 2


def test_scoring_leaves_the_model_unchanged(net):
    run_pass, _ = _make_pass(net, [torch.randn(2, 4)])
    list(score_layers({"first": net.first}, SCORERS["fisher"], run_pass))
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2
    assert all(p.grad is None for p in net.parameters())
    assert not net.first.weight._post_accumulate_grad_hooks


def test_magnitude_needs_no_data(net):
    def never() -> int:
        raise AssertionError

    assert dict(score_layers({"first": net.first}, SCORERS["magnitude"], never)).keys() == {"first"}


def test_scoring_without_a_sequence_is_an_error(net):
    with pytest.raises(BadMask, match="no calibration sequences"):
        list(score_layers({"first": net.first}, SCORERS["fisher"], lambda: 0))
