"""What is trained, as one flat vector: weights, gradients and AdamW's moments side by side.

n: numbers that are trained. Everything is float32 and whole on every worker: at about one per cent
of a model it is small, one exchange moves all of it, and the state to save or to resume from is
simply there, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Slot:
    name: str
    parameter: nn.Parameter
    start: int
    end: int


class Bucket:
    """The trainable parameters of a model, which become views of one vector where they can.

    Parameters in float32 are views of `weights_n`, and their gradients of `gradients_n`, so nothing
    is ever copied; those of another type (a bfloat16 head) are rounded copies.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], *, extras: int) -> None:
        self._slots: dict[str, _Slot] = {}
        at = 0
        for name, parameter in named.items():
            self._slots[name] = _Slot(name, parameter, at, at + parameter.numel())
            at += parameter.numel()
        device = next(iter(named.values())).device
        self.count = at
        self.weights_n = nn.Parameter(torch.empty(at, device=device))
        self.travelling = torch.zeros(at + extras, device=device)
        self.weights_n.grad = self.travelling[:at]
        with torch.no_grad():
            for slot in self._slots.values():
                self._of(self.weights_n, slot).copy_(slot.parameter)
                if slot.parameter.dtype == torch.float32:
                    slot.parameter.data = self._of(self.weights_n.data, slot)
                    slot.parameter.grad = self._of(self.gradients_n, slot)

    @property
    def gradients_n(self) -> Tensor:
        """The gradient of the whole step, float32 `[n]`."""
        return self.travelling[: self.count]

    @property
    def extras(self) -> Tensor:
        """What travels behind the gradients, float32."""
        return self.travelling[self.count :]

    def collect(self) -> None:
        """Adds the gradients of parameters that are no views; after each backward."""
        for slot in self._slots.values():
            if slot.parameter.dtype != torch.float32 and slot.parameter.grad is not None:
                self._of(self.gradients_n, slot).add_(slot.parameter.grad)
                slot.parameter.grad = None

    def clear(self) -> None:
        """Before a step's first backward."""
        self.travelling.zero_()

    def spread(self) -> None:
        """Rounds the weights into the parameters that are no views; after each change of them."""
        with torch.no_grad():
            for slot in self._slots.values():
                if slot.parameter.dtype != torch.float32:
                    slot.parameter.copy_(self._of(self.weights_n, slot))

    def named(self, vector_n: Tensor) -> dict[str, Tensor]:
        """A vector of length n cut by parameter, as copies on the CPU."""
        flat = vector_n.detach().to("cpu", copy=True)
        return {slot.name: self._of(flat, slot) for slot in self._slots.values()}

    def fill(self, vector_n: Tensor, named: Mapping[str, Tensor]) -> None:
        """Writes some parameters' tensors into a vector of length n."""
        with torch.no_grad():
            for slot in self._slots.values():
                if slot.name in named:
                    self._of(vector_n, slot).copy_(named[slot.name])

    def names(self) -> list[str]:
        """The parameters, in the order in which they lie in the vector."""
        return list(self._slots)

    def part(self, vector_n: Tensor, name: str) -> Tensor:
        """One parameter's part of a vector, a view in its shape."""
        return self._of(vector_n, self._slots[name])

    def release(self) -> None:
        """The parameters stand by themselves again, with the weights that they have."""
        for slot in self._slots.values():
            slot.parameter.grad = None
            slot.parameter.data = slot.parameter.data.clone()

    def first_not_finite(self, vector_n: Tensor) -> str | None:
        """The first parameter whose part of the vector holds a number that is none."""
        bad = (~torch.isfinite(vector_n.detach())).nonzero()
        if not len(bad):
            return None
        at = int(bad[0])
        return next(s.name for s in self._slots.values() if s.start <= at < s.end)

    @staticmethod
    def _of(vector: Tensor, slot: _Slot) -> Tensor:
        return vector[slot.start : slot.end].view(slot.parameter.shape)
