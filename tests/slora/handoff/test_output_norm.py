"""The hand-off in the norm of the outputs and of the loss: best of its rank, from a sketch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slora.handoff.capture import CountedTokens, sketch_layers
from slora.handoff.handoff import Handoff, split_sparse_update
from slora.handoff.linear_update import DenseUpdate, SparseUpdate
from slora.handoff.output_norm import DAMPING
from slora.handoff.sketch import LayerSketch, start_sketch
from slora.layers.sparse import make_dense_delta
from slora.masks.mask import BlockMask, Mask, draw_random_mask

ROWS, COLUMNS, TOKENS, RANK = 72, 48, 300, 4


def make_update(density: float = 0.1) -> tuple[Tensor, Mask]:
    mask = draw_random_mask(seed=0, name="layer", shape=(ROWS, COLUMNS), density=density)
    return torch.randn(mask.nnz), mask


def draw_tokens(width: int, decay: float) -> Tensor:
    """Draw tokens whose covariance has a decaying spectrum in a random basis."""
    basis, _ = torch.linalg.qr(torch.randn(width, width))
    return torch.randn(TOKENS, width) * torch.logspace(0, -decay, width) @ basis


def sketch_tokens(
    values: Tensor, mask: Mask, x_NI: Tensor, g_NO: Tensor | None = None, *, rank: int = RANK
) -> LayerSketch:
    update = SparseUpdate(values, mask)
    sketch = start_sketch(update, rank=rank, seed=3, name="layer", gradients=g_NO is not None)
    for rows in torch.arange(len(x_NI)).split(64):
        sketch.add_inputs(x_NI[rows])
        if g_NO is not None:
            sketch.add_gradients(g_NO[rows])
    return sketch


def compute_rest(values: Tensor, mask: Mask, result: Handoff, scale: float = 1.0) -> Tensor:
    delta = make_dense_delta(values, mask).double()
    return delta - scale * result.b_OR.double() @ result.a_RI.double()


@pytest.mark.parametrize("split", ["balanced", "b"])
def test_the_factors_are_nearly_the_best_of_their_rank_for_the_outputs(split):
    torch.manual_seed(0)
    (values, mask), x_NI = make_update(), draw_tokens(COLUMNS, 2.0)
    sketch = sketch_tokens(values, mask, x_NI)
    result = split_sparse_update(values, mask, rank=RANK, scale=2.0, split=split, sketch=sketch)
    outputs = x_NI.double() @ make_dense_delta(values, mask).double().t()
    energies = torch.linalg.svdvals(outputs).square()
    lost = (x_NI.double() @ compute_rest(values, mask, result, 2.0).t()).square().sum()
    share, best = float(1 - lost / energies.sum()), float(energies[:RANK].sum() / energies.sum())
    assert best - 0.01 < share <= best + 1e-6
    assert result.output_share == pytest.approx(share, abs=0.03)
    by_weights = split_sparse_update(values, mask, rank=RANK, scale=2.0)
    lost = (x_NI.double() @ compute_rest(values, mask, by_weights, 2.0).t()).square().sum()
    assert share > 0.1 + float(1 - lost / energies.sum())
    assert by_weights.energy_share > result.energy_share
    assert by_weights.output_share is None


def test_the_factors_are_nearly_the_best_of_their_rank_for_the_loss():
    torch.manual_seed(1)
    (values, mask), x_NI, g_NO = make_update(), draw_tokens(COLUMNS, 2.0), draw_tokens(ROWS, 2.0)
    covariance = g_NO.double().t() @ g_NO.double()
    covariance += DAMPING * covariance.trace() / ROWS * torch.eye(ROWS)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = vectors * eigenvalues.sqrt() @ vectors.t()

    def measure_share(result: Handoff) -> float:
        rest = root @ compute_rest(values, mask, result) @ x_NI.double().t()
        return float(1 - rest.square().sum() / energies.sum())

    delta = make_dense_delta(values, mask).double()
    energies = torch.linalg.svdvals(root @ delta @ x_NI.double().t()).square()
    best = float(energies[:RANK].sum() / energies.sum())
    by_loss, by_outputs = (
        split_sparse_update(values, mask, rank=RANK, scale=1.0, sketch=sketch)
        for sketch in (sketch_tokens(values, mask, x_NI, g_NO), sketch_tokens(values, mask, x_NI))
    )
    assert best - 0.06 < measure_share(by_loss) <= best + 1e-6
    assert measure_share(by_loss) > measure_share(by_outputs) + 0.02
    rest = compute_rest(values, mask, by_loss).norm() / delta.norm()
    assert by_loss.error == pytest.approx(float(rest), abs=1e-6)


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("tokens", [0, 2, TOKENS])
def test_an_update_of_at_most_the_rank_is_kept_exactly(tokens, with_gradients):
    torch.manual_seed(2)
    mask = BlockMask((ROWS, COLUMNS), torch.tensor([3, 9, 40, 71]), torch.arange(COLUMNS))
    values, x_NI = torch.randn(mask.nnz), draw_tokens(COLUMNS, 5.0)[:tokens]
    g_NO = draw_tokens(ROWS, 3.0)[:tokens] if with_gradients else None
    sketch = sketch_tokens(values, mask, x_NI, g_NO)
    result = split_sparse_update(values, mask, rank=RANK, scale=1.0, sketch=sketch)
    assert result.error < 1e-5
    assert result.energy_share == pytest.approx(1.0, abs=1e-5)
    assert result.output_share == pytest.approx(1.0, abs=1e-4)
    assert result.effective_rank == RANK


def test_an_update_of_zero_gives_zero_factors():
    _, mask = make_update()
    values = torch.zeros(mask.nnz)
    sketch = sketch_tokens(values, mask, draw_tokens(COLUMNS, 1.0))
    result = split_sparse_update(values, mask, rank=RANK, scale=1.0, sketch=sketch)
    assert (result.output_share, result.error, result.effective_rank) == (1.0, 0.0, 0)
    assert not result.a_RI.any()


def test_the_estimate_of_the_outputs_energy_counts_what_the_sketch_missed():
    torch.manual_seed(3)
    (values, mask), x_NI = make_update(density=0.5), torch.randn(TOKENS, COLUMNS)
    sketch = sketch_tokens(values, mask, x_NI, rank=2)
    result = split_sparse_update(values, mask, rank=2, scale=1.0, sketch=sketch)
    energy = (x_NI @ make_dense_delta(values, mask).t()).square().sum()
    rest = (x_NI @ compute_rest(values, mask, result).float().t()).square().sum()
    # A flat spectrum is the worst case: a sketch of 12 of 48 directions still tells the share.
    assert result.output_share == pytest.approx(float(1 - rest / energy), abs=0.06)


def test_sums_of_parts_equal_the_sketch_of_all_tokens():
    torch.manual_seed(4)
    (values, mask), x_NI, g_NO = make_update(), draw_tokens(COLUMNS, 1.0), draw_tokens(ROWS, 1.0)
    complete = sketch_tokens(values, mask, x_NI, g_NO)
    parts = [
        sketch_tokens(values, mask, x_NI[rows], g_NO[rows]).pack()
        for rows in (slice(0, 100), slice(100, None))
    ]
    torch.testing.assert_close(parts[0] + parts[1], complete.pack(), rtol=1e-4, atol=1e-3)
    total = sketch_tokens(values, mask, x_NI[:0], g_NO[:0])
    total.unpack(parts[0] + parts[1])
    assert float(total.facts[0]) == TOKENS
    torch.testing.assert_close(total.inputs_IK, complete.inputs_IK, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(total.gradients_OK, complete.gradients_OK, rtol=1e-4, atol=1e-3)


def test_a_dense_update_has_the_sketch_of_the_same_sparse_one():
    torch.manual_seed(5)
    values, mask = make_update()
    sparse = start_sketch(SparseUpdate(values, mask), rank=RANK, seed=0, name="a")
    dense = start_sketch(DenseUpdate(make_dense_delta(values, mask)), rank=RANK, seed=0, name="a")
    torch.testing.assert_close(sparse.probe_IK, dense.probe_IK)
    other = start_sketch(SparseUpdate(values, mask), rank=RANK, seed=0, name="b")
    assert not torch.equal(sparse.probe_IK, other.probe_IK)


def test_hooks_sketch_the_counted_tokens_and_their_gradients():
    torch.manual_seed(6)
    values, mask = make_update()
    layer, tokens = torch.nn.Linear(COLUMNS, ROWS), CountedTokens()
    counted = torch.rand(2, 9) < 0.5
    x = torch.randn(2, 9, COLUMNS, requires_grad=True)
    sketch = sketch_tokens(values, mask, torch.zeros(0, COLUMNS), torch.zeros(0, ROWS))
    tokens.set_masks([counted])
    with sketch_layers({"layer": layer}, {"layer": sketch}, tokens):
        layer(x).square().sum().backward()
    layer(x)
    expected = sketch_tokens(values, mask, x.detach()[counted], 2 * layer(x).detach()[counted])
    torch.testing.assert_close(sketch.pack(), expected.pack(), rtol=1e-4, atol=1e-3)


def test_tokens_that_no_mask_fits_are_all_counted():
    tokens = CountedTokens()
    tokens.set_masks([torch.tensor([[True, False, True]])])
    assert tokens.select(torch.zeros(1, 3, 5)).shape == (2, 5)
    assert tokens.select(torch.zeros(3, 5)).shape == (2, 5)
    assert tokens.select(torch.zeros(1, 4, 5)).shape == (4, 5)
