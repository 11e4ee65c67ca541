"""Fused experts: the same product, gradients and bits as dense weights, in both layouts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slora.formats.merge import attach_adapter, merge_adapter
from slora.formats.peft import LoraAdapter, read_adapter, write_lora, write_sparse
from slora.handoff.handoff import split_sparse_update
from slora.handoff.low_rank_init import LowRankInit
from slora.layers.base_layers import get_features, get_weight_matrix, iter_layers
from slora.layers.experts import _RECOMPUTED
from slora.layers.factors import multiply_factors, split_experts
from slora.layers.gates import measure_importance
from slora.layers.install import extract_factors, install_low_rank, install_sparse, remove_layers
from slora.layers.lora import init_factors
from slora.layers.shapes import LayerShape
from slora.layers.sparse import make_dense_delta
from slora.layers.targets import find_targets
from slora.masks.factor_mask import FactorMaskRule
from slora.masks.mask import Mask, draw_random_mask
from slora.masks.selection import MaskRequest, choose_masks
from slora.masks.stacks import split_values

EXPERTS, WIDE, NARROW, RANK = 3, 6, 4, 2
RULE = FactorMaskRule("balanced", 0.5, 0)


class TinyExperts(nn.Module):
    """A loop over experts, as transformers' eager one."""

    def __init__(self, *, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        up, down = (EXPERTS, WIDE, NARROW), (EXPERTS, NARROW, WIDE)
        shapes = (down, up) if is_transposed else (up, down)
        self.gate_up_proj, self.down_proj = (nn.Parameter(torch.randn(s) * 0.3) for s in shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        for expert in range(EXPERTS):
            up, down = self.gate_up_proj[expert], self.down_proj[expert]
            if self.is_transposed:
                up, down = up.t(), down.t()
            y = y + torch.tanh(x @ up.t()) @ down.t() * (expert + 1)
        return y


class TinyModel(nn.Module):
    def __init__(self, *, is_transposed: bool) -> None:
        super().__init__()
        self.first = nn.Linear(NARROW, NARROW)
        self.experts = TinyExperts(is_transposed=is_transposed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.experts(self.first(x))
        return y


@pytest.fixture(params=[False, True], ids=["out-in", "in-out"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    torch.manual_seed(0)
    return TinyModel(is_transposed=request.param).requires_grad_(False)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.linspace(-1, 1, 5 * NARROW).view(5, NARROW)


def _shapes(model: nn.Module) -> dict[str, LayerShape]:
    return {n: get_features(m) for n, m in find_targets(model, "all-linear", head=[]).items()}


def _masks(model: nn.Module, strategy: str = "random") -> dict[str, Mask]:
    shapes = _shapes(model)
    if strategy == "random":
        return {
            name: draw_random_mask(seed=0, name=name, shape=shape, density=0.4)
            for name, shape in shapes.items()
        }
    request = MaskRequest(
        mask=strategy, score="random", sizing="density", rank=RANK, density=0.4,
        allocation="uniform", seed=0,
    )  # fmt: skip
    return dict(choose_masks(shapes, request))


def _dense_gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of every target's weight, [E O, I]."""
    targets = find_targets(model, "all-linear", head=[])
    gradients = {}
    for layer in targets.values():
        layer.weight.requires_grad_(True)
    model(x).square().sum().backward()
    for name, layer in targets.items():
        gradient = layer.weight.grad
        layer.weight.grad = None
        layer.weight.requires_grad_(False)
        if gradient.ndim == 3:
            gradient = (gradient.transpose(1, 2) if layer.transposed else gradient).flatten(0, 1)
        gradients[name] = gradient
    return gradients


def test_the_weights_of_experts_are_targets_of_their_own(model):
    up, down = LayerShape(EXPERTS * WIDE, NARROW, EXPERTS), LayerShape(12, WIDE, EXPERTS)
    shapes = _shapes(model)
    assert shapes == {"first": (4, 4), "experts.gate_up_proj": up, "experts.down_proj": down}
    assert [shape.experts for shape in shapes.values()] == [1, EXPERTS, EXPERTS]
    assert list(find_targets(model, ["down_proj"], head=[])) == ["experts.down_proj"]


@pytest.mark.parametrize("strategy", ["random", "rows", "columns"])
def test_values_move_their_entries_and_get_their_gradients(model, x, strategy):
    masks, base = _masks(model, strategy), model(x)
    layers = install_sparse(model, masks)
    torch.testing.assert_close(model(x), base, rtol=0, atol=0)
    for number, layer in enumerate(layers.values()):
        values = torch.linspace(-0.2, 0.3, layer.values.numel()) * (number + 1)
        layer.values.data.copy_(values)
    y = model(x)
    y.square().sum().backward()
    assert not _RECOMPUTED
    found = {name: layer.values for name, layer in layers.items()}
    remove_layers(model)
    assert type(model.experts) is TinyExperts
    torch.testing.assert_close(model(x), base, rtol=0, atol=0)
    from slora.formats.compact import SparseAdapter

    merge_adapter(
        model,
        SparseAdapter({n: v.detach() for n, v in found.items()}, masks, base="", task="causal-lm"),
    )
    torch.testing.assert_close(model(x), y.detach())
    for name, gradient in _dense_gradients(model, x).items():
        expected = gradient.flatten()[masks[name].positions]
        torch.testing.assert_close(found[name].grad, expected, msg=lambda text, n=name: n + text)


def _install(model: nn.Module, **options):
    starts = {}
    for name, shape in _shapes(model).items():
        a_RI, b_OR = init_factors(seed=0, name=name, shape=shape, rank=RANK)
        starts[name] = LowRankInit(a_RI, torch.linspace(-0.3, 0.4, b_OR.numel()).view_as(b_OR))
    return starts, install_low_rank(model, starts, scale=0.5, **options)


def test_factors_add_a_product_to_each_expert(model, x):
    starts, layers = _install(model)
    y = model(x)
    y.square().sum().backward()
    grads = {name: (layer.a_RI.grad, layer.b_OR.grad) for name, layer in layers.items()}
    remove_layers(model)
    adapter = LoraAdapter(
        {n: (s.a_RI, s.b_OR) for n, s in starts.items()}, 1.0, RANK, "", "causal-lm"
    )
    merge_adapter(model, adapter)
    torch.testing.assert_close(model(x), y.detach())
    for name, gradient in _dense_gradients(model, x).items():
        experts = get_features(find_targets(model, [name], head=[])[name]).experts
        pairs = zip(split_experts(adapter.factors[name]), gradient.chunk(experts), strict=True)
        for index, ((a, b), part) in enumerate(pairs):
            found_a, found_b = (grad.chunk(experts)[index] for grad in grads[name])
            torch.testing.assert_close(found_a, 0.5 * b.t() @ part)
            torch.testing.assert_close(found_b, 0.5 * part @ a.t())


@pytest.mark.parametrize("options", [{"gates": True}, {"factor_mask": RULE}])
def test_gates_and_sparse_factors_work_on_experts_too(model, x, options):
    _, layers = _install(model, **options)
    if "factor_mask" in options:
        for layer in layers.values():
            layer.a_values.data.normal_()
            layer.b_values.data.normal_()
    with torch.no_grad():
        if "gates" in options:
            for layer in layers.values():
                layer.gate_R.copy_(torch.tensor([0.0, 2.0]))
                assert measure_importance(layer.gate_R, layer.a_RI, layer.b_OR).shape == (RANK,)
    y = model(x).detach()
    weights = dict(model.named_parameters())
    factors = extract_factors({n: p.detach() for n, p in weights.items()}, model)
    remove_layers(model)
    rank = 1 if "gates" in options else RANK
    attach_adapter(model, LoraAdapter(factors, 0.5 * rank, rank, "", "causal-lm"))
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("residual", ["keep", "fold"])
def test_the_hand_off_factors_each_expert_and_loses_nothing_with_a_residual(model, residual):
    masks = _masks(model)
    name = "experts.gate_up_proj"
    values = torch.linspace(-1, 1, masks[name].nnz)
    result = split_sparse_update(values, masks[name], rank=RANK, scale=0.5, residual=residual)
    assert result.a_RI.shape == (EXPERTS * RANK, NARROW)
    assert result.b_OR.shape == (EXPERTS * WIDE, RANK)
    dense = make_dense_delta(values, masks[name])
    for (a, b), part in zip(
        split_experts((result.a_RI, result.b_OR)), dense.chunk(EXPERTS), strict=True
    ):
        u, s, vh = torch.linalg.svd(part, full_matrices=False)
        torch.testing.assert_close(0.5 * b @ a, (u[:, :RANK] * s[:RANK]) @ vh[:RANK])
    product = 0.5 * multiply_factors(result.a_RI, result.b_OR)
    error = float((dense - product).norm() / dense.norm())
    assert result.error == pytest.approx(error, rel=1e-5)
    assert result.energy_share == pytest.approx(1 - error**2, rel=1e-5)
    if residual == "keep":
        expected = (dense - product).flatten()[masks[name].positions]
        torch.testing.assert_close(result.residual, expected)


@pytest.mark.parametrize("strategy", ["random", "rows", "columns"])
def test_the_masks_of_experts_are_cut_out_of_the_stack(model, strategy):
    mask = _masks(model, strategy)["experts.down_proj"]
    values = torch.arange(1.0, 1 + mask.nnz)
    parts = [make_dense_delta(part, own) for part, own in split_values(values, mask)]
    assert all(part.shape == (NARROW, WIDE) for part in parts)
    assert torch.equal(torch.cat(parts), make_dense_delta(values, mask))


@pytest.mark.parametrize("form", ["peft", "compact"])
def test_both_forms_read_back_the_experts(model, x, tmp_path, form):
    from slora.formats.peft import make_compact

    starts, _ = _install(model)
    y = model(x).detach()
    remove_layers(model)
    adapter = LoraAdapter(
        {n: (s.a_RI, s.b_OR) for n, s in starts.items()}, 1.0, RANK, "base", "causal-lm"
    )
    if form == "peft":
        write_lora(tmp_path, adapter)
    else:
        write_sparse(tmp_path, make_compact(adapter))
    attach_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(model(x), y, rtol=0, atol=0)


def test_a_residual_on_experts_is_taken_back_to_the_bit(model, x):
    masks, base = _masks(model), model(x)
    starts, _ = {}, None
    for name, shape in _shapes(model).items():
        a_RI, b_OR = init_factors(seed=0, name=name, shape=shape, rank=RANK)
        starts[name] = LowRankInit(a_RI, b_OR, residual=torch.full((masks[name].nnz,), 0.1))
    install_low_rank(model, starts, scale=1.0, masks=masks)
    moved = get_weight_matrix(dict(iter_layers(model))["experts.down_proj"])
    assert not torch.equal(model(x), base) and moved.shape == (EXPERTS * NARROW, WIDE)
    remove_layers(model)
    torch.testing.assert_close(model(x), base, rtol=0, atol=0)
