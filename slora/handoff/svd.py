"""The leading singular triplets of an update: exact for a small one, by Lanczos for a large one.

O, I: rows and columns of the update. R: the requested rank. Z: entries of a mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds
from torch import Tensor

from slora.errors import BadRank
from slora.masks.mask import BlockMask, Mask

MAX_EXACT_SIDE = 128
"""Smaller side up to which LAPACK decomposes the whole matrix. Random 1 % updates, 2 cores, ms:

    side             256     384     512     768    2048
    LAPACK, full      13      14      49      78    1515
    Lanczos, R = 8     4       5       6       8      40
"""
EXTRA_VECTORS = 20
"""Vectors that Lanczos holds beyond twice the rank; the spectrum of a random update is flat,
and a larger subspace converges in fewer rounds."""

Triplets = tuple[Tensor, Tensor, Tensor]
"""(u `[O, R]`, s `[R]` descending, vh `[R, I]`), float32, with the sign of each row of vh fixed."""


def compute_dense_svd(matrix_OI: Tensor, rank: int) -> Triplets:
    """Decompose a dense matrix of any float dtype. Raise BadRank."""
    check_rank(rank, matrix_OI.shape)
    if min(matrix_OI.shape) <= MAX_EXACT_SIDE or rank * 4 >= min(matrix_OI.shape):
        return _cut_triplets(*_run_lapack(matrix_OI.float()), rank)
    return _run_lanczos(matrix_OI.double().cpu().numpy(), rank)


def compute_sparse_svd(values: Tensor, mask: Mask, rank: int) -> Triplets:
    """Decompose an update that is zero outside its mask; a block from its own rows and columns."""
    check_rank(rank, mask.shape)
    if isinstance(mask, BlockMask):
        return _compute_block_svd(values, mask, rank)
    if min(mask.shape) <= MAX_EXACT_SIDE or rank * 4 >= min(mask.shape):
        flat = torch.zeros(mask.shape[0] * mask.shape[1])
        flat[mask.positions] = values.detach().float().cpu()
        return _cut_triplets(*_run_lapack(flat.view(mask.shape)), rank)
    positions = mask.positions.numpy()
    coordinates = positions // mask.shape[1], positions % mask.shape[1]
    matrix = csr_array((values.detach().double().cpu().numpy(), coordinates), shape=mask.shape)
    return _run_lanczos(matrix, rank)


def compute_product_svd(left_OR: Tensor, right_RI: Tensor, rank: int) -> Triplets:
    """Decompose `left right`, of inner size up to `rank`, without the product; zeros fill up."""
    q_left, r_left = torch.linalg.qr(left_OR)
    q_right, r_right = torch.linalg.qr(right_RI.t())
    u, s, vh = torch.linalg.svd(r_left @ r_right.t(), full_matrices=False)
    u, s, vh = _cut_triplets((q_left @ u).float(), s.float(), (vh @ q_right.t()).float(), rank)
    missing = rank - s.numel()
    pad = torch.nn.functional.pad
    return pad(u, (0, missing)), pad(s, (0, missing)), pad(vh, (0, 0, 0, missing))


def compute_left_vectors(tall_OL: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left singular vectors of a tall float64 matrix, `[O, L]` with orthonormal columns,
    and its singular values, descending.

    They come from the Gram matrix, several times faster than from LAPACK's SVD: values below about
    3e-7 of the largest are rounding errors, and their vectors arbitrary. What such a value mixes
    into a vector lies in the directions of larger ones, from which QR frees it.
    """
    eigenvalues, vectors_LL = torch.linalg.eigh(tall_OL.t() @ tall_OL)
    values_L, vectors_LL = eigenvalues.flip(0).clamp_min(0).sqrt(), vectors_LL.flip(1)
    smallest = torch.finfo(torch.float64).tiny
    basis_OL, _ = torch.linalg.qr(tall_OL @ (vectors_LL / values_L.clamp_min(smallest)))
    return basis_OL, values_L


def _compute_block_svd(values: Tensor, mask: BlockMask, rank: int) -> Triplets:
    inner = values.detach().float().cpu().view(mask.rows.numel(), mask.columns.numel())
    inner_rank = min(rank, *inner.shape)
    u, s, vh = _cut_triplets(*_run_lapack(inner), inner_rank)
    wide_u, wide_vh = torch.zeros(mask.shape[0], rank), torch.zeros(rank, mask.shape[1])
    wide_u[mask.rows, :inner_rank] = u
    wide_vh[:inner_rank, mask.columns] = vh
    return wide_u, torch.cat((s, torch.zeros(rank - inner_rank))), wide_vh


def _run_lapack(matrix_OI: Tensor) -> Triplets:
    """Return the thin SVD. LAPACK decomposes a tall matrix three times faster than a wide one."""
    if matrix_OI.shape[0] >= matrix_OI.shape[1]:
        u, s, vh = torch.linalg.svd(matrix_OI, full_matrices=False)
        return u, s, vh
    v, s, uh = torch.linalg.svd(matrix_OI.t(), full_matrices=False)
    return uh.t(), s, v.t()


def _run_lanczos(matrix: Any, rank: int) -> Triplets:
    """Run ARPACK in float64 to machine precision, from a fixed vector: equal on every rank."""
    side = min(matrix.shape)
    if not (matrix if isinstance(matrix, np.ndarray) else matrix.data).any():
        zeros = torch.zeros
        return zeros(matrix.shape[0], rank), zeros(rank), zeros(rank, matrix.shape[1])
    start = np.random.Generator(np.random.Philox(key=side)).standard_normal(side)
    subspace_size = min(side - 1, 2 * rank + EXTRA_VECTORS)
    u, s, vh = svds(matrix, k=rank, ncv=subspace_size, v0=start, solver="arpack")
    # ARPACK returns the values in ascending order.
    return _cut_triplets(
        _make_tensor(u[:, ::-1]), _make_tensor(s[::-1]), _make_tensor(vh[::-1]), rank
    )


def _make_tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.copy()).float()


def _cut_triplets(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Triplets:
    """Return the first `rank` triplets; signs make the largest entry of each vh positive."""
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    largest = vh.gather(1, vh.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return u * sign.t(), s, vh * sign


def check_rank(rank: int, shape: Any) -> None:
    """Raise BadRank for a rank that a matrix of this shape can't have."""
    if not 1 <= rank <= min(shape):
        raise BadRank(rank, tuple(shape))
