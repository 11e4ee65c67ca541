"""The update of one layer as a linear map: sparse values, factors, or a dense matrix.

O, I: rows and columns of the update dW. K: columns that are multiplied at once. R: the rank.
Z: entries of a mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor

from slora.handoff.svd import Triplets, compute_dense_svd, compute_sparse_svd
from slora.masks.mask import Mask


class LinearUpdate(ABC):
    """dW `[O, I]`: everything that a hand-off asks of it, on the CPU and in float64."""

    shape: tuple[int, int]

    @abstractmethod
    def multiply(self, matrix_IK: Tensor) -> Tensor:
        """Return `dW M`, float64 `[O, K]`."""

    @abstractmethod
    def multiply_back(self, matrix_OK: Tensor) -> Tensor:
        """Return `dW^T M`, float64 `[I, K]`."""

    @abstractmethod
    def compute_svd(self, rank: int) -> Triplets:
        """Return the leading singular triplets of dW. Raise BadRank."""

    @property
    @abstractmethod
    def energy(self) -> float:
        """Return `||dW||^2`, Frobenius."""


class SparseUpdate(LinearUpdate):
    """Values `[Z]` on a mask."""

    def __init__(self, values: Tensor, mask: Mask) -> None:
        self._values, self._mask = values.detach().double().cpu(), mask
        self.shape = (mask.shape[0], mask.shape[1])

    def multiply(self, matrix_IK: Tensor) -> Tensor:
        return torch.from_numpy(self._rows @ matrix_IK.double().numpy())

    def multiply_back(self, matrix_OK: Tensor) -> Tensor:
        return torch.from_numpy(self._rows.T @ matrix_OK.double().numpy())

    def compute_svd(self, rank: int) -> Triplets:
        return compute_sparse_svd(self._values, self._mask, rank)

    @property
    def energy(self) -> float:
        return float(self._values.square().sum())

    @cached_property
    def _rows(self) -> Any:
        positions = self._mask.positions.numpy()
        coordinates = positions // self.shape[1], positions % self.shape[1]
        return csr_array((self._values.numpy(), coordinates), shape=self.shape)


class DenseUpdate(LinearUpdate):
    """A matrix of any float dtype."""

    def __init__(self, matrix_OI: Tensor) -> None:
        self._matrix_OI = matrix_OI.detach().cpu()
        self.shape = (matrix_OI.shape[0], matrix_OI.shape[1])

    def multiply(self, matrix_IK: Tensor) -> Tensor:
        # In float32: a float64 copy would be twice the layer.
        return (self._matrix_OI.float() @ matrix_IK.float()).double()

    def multiply_back(self, matrix_OK: Tensor) -> Tensor:
        return (self._matrix_OI.float().t() @ matrix_OK.float()).double()

    def compute_svd(self, rank: int) -> Triplets:
        return compute_dense_svd(self._matrix_OI, rank)

    @property
    def energy(self) -> float:
        return float(torch.linalg.vector_norm(self._matrix_OI, dtype=torch.float64)) ** 2
