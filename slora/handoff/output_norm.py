"""The part of an update of a rank that is best for the layer's outputs, or for the loss.

O, I: rows and columns of the update dW. R: the rank. K: columns of the sketch. X, G: inputs and
output gradients, tokens in rows.

    outputs: min ||(dW - P) X^T||                has P = U U^T dW, U the R leading eigenvectors of
                                                 C = dW X^T X dW^T
    loss:    min ||(G^T G)^(1/2) (dW - P) X^T||  has P = H^(-1) U U^T H dW, H = (G^T G)^(1/2), U
                                                 the R leading left singular vectors of H dW X^T

The second is the increase of the loss to second order if gradients and inputs are independent
(K-FAC: Martens and Grosse, 2015, arXiv 1503.05671). No inverse of the inputs' covariance is needed,
and no matrix of [O, O] or [I, I] exists: C is its Nystroem approximation from the sketch,
`S (Omega^T S)^-1 S^T` for `S = C Omega`, in float64 (Tropp et al., 2017, arXiv 1706.05736).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slora.handoff.linear_update import LinearUpdate
from slora.handoff.sketch import LayerSketch, draw_gradient_matrix, draw_test_matrix
from slora.handoff.svd import Triplets, compute_left_vectors, compute_product_svd

EIGENVALUE_TOLERANCE = 1e-6
"""Smaller eigenvalues of a sketch, as a share of its largest, are rounding of its float32 sums."""
DAMPING = 1e-2
"""Added to the gradients' covariance, as a share of its mean eigenvalue: a direction without any
gradient in the calibration still counts a little."""
DIRECTION_TOLERANCE = 1e-6
"""Shorter directions of an update, as a share of its longest, are rounding errors."""


@dataclass(frozen=True)
class NormedSplit:
    """The best part of its rank, and what is needed to rate any factors in the outputs' norm."""

    triplets: Triplets
    """float32, of the product P."""
    input_root_IL: Tensor
    """float64: `X^T X` is about `F F^T` on the directions that dW reads."""
    outputs_OL: Tensor
    """float64: `dW F`."""
    output_energy: float
    """`||dW X^T||^2`, estimated from the sketch."""


def split_by_sketch(update: LinearUpdate, sketch: LayerSketch, rank: int) -> NormedSplit:
    """Return the best part of the rank for the sketch's norm: `loss` if it has gradients.

    Directions that the outputs leave open, because the tokens span fewer than the rank, are filled
    by the weights' norm: an update of at most the rank is returned exactly. Raise BadRank.
    """
    probe_IK, products_IK = sketch.probe_IK.double().cpu(), sketch.inputs_IK.double().cpu()
    root_IL, inverse_KK = _factor_covariance(probe_IK, products_IK)
    rows, columns = update.shape[0], probe_IK.shape[1]
    test_OK = draw_test_matrix(rows, columns, seed=sketch.seed, name=sketch.name)
    metric = _measure_gradients(sketch, rows)
    outputs_OL = update.multiply(root_IL)
    basis_OR = _find_basis(metric.scale(outputs_OL), rank)
    if basis_OR.shape[1] < rank:
        u, s, _ = update.compute_svd(rank)
        basis_OR = _fill_basis(basis_OR, metric.scale(u.double() * s.double()), rank)
    left_OR = metric.unscale(basis_OR)
    right_RI = update.multiply_back(metric.scale(basis_OR)).t()
    return NormedSplit(
        triplets=compute_product_svd(left_OR, right_RI, rank),
        input_root_IL=root_IL,
        outputs_OL=outputs_OL,
        output_energy=_estimate_trace(outputs_OL, test_OK, inverse_KK),
    )


def measure_output_share(split: NormedSplit, a_RI: Tensor, b_OR: Tensor, *, scale: float) -> float:
    """Return the share of `||dW X^T||^2` that the factors retain, or somewhat less: what the sketch
    has missed counts as lost.
    """
    outputs_OL = split.outputs_OL
    product_OL = scale * b_OR.double() @ (a_RI.double() @ split.input_root_IL)
    reached = float(outputs_OL.square().sum())
    energy = max(split.output_energy, reached)
    if not energy:
        return 1.0
    lost = float((outputs_OL - product_OL).square().sum()) + energy - reached
    return max(0.0, 1.0 - lost / energy)


@dataclass(frozen=True)
class _Metric:
    """`H = (G^T G + damping)^(1/2)`: `roots_K` on a basis, and `rest` on all that is outside it."""

    basis_OK: Tensor
    roots_K: Tensor
    rest: float

    def scale(self, matrix_OM: Tensor) -> Tensor:
        """Return `H M`."""
        return self._apply(matrix_OM, self.roots_K, self.rest)

    def unscale(self, matrix_OM: Tensor) -> Tensor:
        """Return `H^-1 M`."""
        return self._apply(matrix_OM, 1 / self.roots_K, 1 / self.rest)

    def _apply(self, matrix_OM: Tensor, roots_K: Tensor, rest: float) -> Tensor:
        inside_KM = (roots_K - rest)[:, None] * (self.basis_OK.t() @ matrix_OM)
        return rest * matrix_OM + self.basis_OK @ inside_KM


def _measure_gradients(sketch: LayerSketch, rows: int) -> _Metric:
    """Return the metric of the output gradients; without any, the identity."""
    energy = float(sketch.facts[1])
    if sketch.gradients_OK is None or not energy:
        return _Metric(torch.zeros(rows, 0).double(), torch.zeros(0).double(), 1.0)
    products_OK = sketch.gradients_OK.double().cpu()
    columns = products_OK.shape[1]
    test_OK = draw_gradient_matrix(rows, columns, seed=sketch.seed, name=sketch.name)
    root_OL, _ = _factor_covariance(test_OK, products_OK)
    basis_OL, roots_L = compute_left_vectors(root_OL)
    inside_L, damping = roots_L.square(), DAMPING * energy / rows
    outside = max(0.0, energy - float(inside_L.sum())) / max(1, rows - inside_L.numel())
    return _Metric(basis_OL, (inside_L + damping).sqrt(), (outside + damping) ** 0.5)


def _factor_covariance(probe_IK: Tensor, products_IK: Tensor) -> tuple[Tensor, Tensor]:
    """Return F `[I, L]` with `C ~ F F^T`, for a covariance C of which the products with the probe
    are known, and the pseudo-inverse of `probe^T C probe`, `[K, K]`. L is at most K.
    """
    inner_KK = probe_IK.t() @ products_IK
    eigenvalues, vectors_KK = torch.linalg.eigh((inner_KK + inner_KK.t()) / 2)
    is_kept = eigenvalues > EIGENVALUE_TOLERANCE * eigenvalues[-1].clamp(min=0)
    eigenvalues, vectors_KL = eigenvalues[is_kept], vectors_KK[:, is_kept]
    root_IL = products_IK @ (vectors_KL / eigenvalues.sqrt())
    return root_IL, (vectors_KL / eigenvalues) @ vectors_KL.t()


def _estimate_trace(root_OL: Tensor, test_OK: Tensor, inverse_KK: Tensor) -> float:
    """Return the trace of C from its Nystroem root, with what the sketch has missed.

    Each column of Omega in turn probes what the approximation by the others leaves (XNysTrace:
    Epperly, Tropp and Webber, 2024, arXiv 2301.07825).
    """
    nystroem = float(root_OL.square().sum())
    if root_OL.shape[1] < test_OK.shape[1] or test_OK.shape[1] == test_OK.shape[0]:
        # The sketch spans all of C: nothing is missed.
        return nystroem
    # Column k, weighted, is what the k-th test vector adds to the approximation.
    parts_OK = root_OL @ (root_OL.t() @ test_OK) @ inverse_KK
    missed_K = (1 - parts_OK.square().sum(0)) / inverse_KK.diagonal()
    return nystroem + max(0.0, float(missed_K.mean()))


def _find_basis(root_OL: Tensor, rank: int) -> Tensor:
    """Return the leading left singular vectors, at most `rank` of them, without rounding errors."""
    vectors_OL, s = compute_left_vectors(root_OL)
    count = int((s > DIRECTION_TOLERANCE * s[:1]).sum())
    return vectors_OL[:, : min(rank, count)]


def _fill_basis(basis_OR: Tensor, others_OR: Tensor, rank: int) -> Tensor:
    """Add the leading directions of the others outside the basis, up to the rank."""
    outside = others_OR - basis_OR @ (basis_OR.t() @ others_OR)
    # Twice, for a basis that is orthonormal to the last bits.
    outside = outside - basis_OR @ (basis_OR.t() @ outside)
    u, s, _ = torch.linalg.svd(outside, full_matrices=False)
    missing = min(rank - basis_OR.shape[1], int((s > DIRECTION_TOLERANCE * others_OR.norm()).sum()))
    return torch.cat((basis_OR, u[:, :missing]), dim=1)
