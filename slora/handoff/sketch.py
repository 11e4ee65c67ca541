"""What a layer's inputs and output gradients tell the hand-off, in a few columns per layer.

O, I: rows and columns of the update dW. N: tokens. K: columns of the sketch.

The hand-off needs the covariance of `dW x`, `C = dW X^T X dW^T`, `[O, O]`. Its product with a
random `Omega` `[O, K]` is enough (Halko, Martinsson and Tropp, 2011, arXiv 0909.4061), and that is
`dW (X^T (X P))` with `P = dW^T Omega`: two thin products a batch, whatever dW is, and a sum over
tokens, so over batches, ranks and clients. No row can be read from it: it holds K numbers for each
input feature, summed over all tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slora.handoff.linear_update import LinearUpdate
from slora.handoff.sketch_size import FACT_COUNT, count_columns


@dataclass
class LayerSketch:
    """The sums of one layer, float32 on the device of its inputs. `add_...` are called per batch.

    `probe_IK`: P. `inputs_IK`: `X^T X P`. `gradient_probe_OK` and `gradients_OK`: a random matrix,
    and `G^T G` times it for the output gradients G `[N, O]`; None without them. `facts`: float64,
    the number of tokens, and `||G||^2`. `seed` and `name` of the layer decide Omega.
    """

    seed: int
    name: str
    probe_IK: Tensor
    inputs_IK: Tensor
    gradient_probe_OK: Tensor | None
    gradients_OK: Tensor | None
    facts: Tensor

    def add_inputs(self, x_NI: Tensor) -> None:
        """Add the inputs of these tokens."""
        x_NI = x_NI.float()
        self.inputs_IK.addmm_(x_NI.t(), x_NI @ self.probe_IK)
        self.facts[0] += x_NI.shape[0]

    def add_gradients(self, g_NO: Tensor) -> None:
        """Add the gradients of these tokens' outputs."""
        assert self.gradients_OK is not None and self.gradient_probe_OK is not None
        g_NO = g_NO.float()
        self.gradients_OK.addmm_(g_NO.t(), g_NO @ self.gradient_probe_OK)
        self.facts[1] += g_NO.square().sum()

    @property
    def norm(self) -> str:
        """Return the norm that the sketch serves; `weights` if no token has reached the layer."""
        if not self.facts[0]:
            return "weights"
        return "outputs" if self.gradients_OK is None else "loss"

    def pack(self) -> Tensor:
        """Return the sums as one flat float32 vector, to be added to those of others."""
        sums = (self.inputs_IK, self.gradients_OK, self.facts.float())
        return torch.cat([part.flatten() for part in sums if part is not None])

    def unpack(self, flat: Tensor) -> None:
        """Replace the sums by those of a vector that `pack` returned, or a sum of several."""
        size = self.inputs_IK.numel()
        self.inputs_IK = flat[:size].view(self.inputs_IK.shape)
        if self.gradients_OK is not None:
            self.gradients_OK = flat[size:-FACT_COUNT].view(self.gradients_OK.shape)
        self.facts = flat[-FACT_COUNT:].double()


def start_sketch(
    update: LinearUpdate,
    *,
    rank: int,
    seed: int,
    name: str,
    gradients: bool = False,
    device: torch.device | None = None,
) -> LayerSketch:
    """Return the empty sketch of a layer. The seed, the name and the update decide its probe."""
    rows, columns = update.shape[0], count_columns(update.shape, rank)
    test_OK = draw_test_matrix(rows, columns, seed=seed, name=name)
    probe_IK = update.multiply_back(test_OK).float().to(device)
    gradient_probe_OK = gradients_OK = None
    if gradients:
        gradient_probe_OK = draw_gradient_matrix(rows, columns, seed=seed, name=name)
        gradient_probe_OK = gradient_probe_OK.float().to(device)
        gradients_OK = torch.zeros_like(gradient_probe_OK)
    facts = torch.zeros(FACT_COUNT, dtype=torch.float64, device=device)
    sums = torch.zeros_like(probe_IK)
    return LayerSketch(seed, name, probe_IK, sums, gradient_probe_OK, gradients_OK, facts)


def draw_test_matrix(rows: int, columns: int, *, seed: int, name: str) -> Tensor:
    """Return Omega, float64 `[O, K]` of standard normal numbers, equal everywhere."""
    digest = hashlib.sha256(f"{seed}\0{name}\0sketch".encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
    return torch.from_numpy(np.random.Generator(stream).standard_normal((rows, columns)))


def draw_gradient_matrix(rows: int, columns: int, *, seed: int, name: str) -> Tensor:
    """Return the test matrix of the output gradients, float64 `[O, K]`."""
    return draw_test_matrix(rows, columns, seed=seed, name=f"{name}\0gradients")
