"""The trainable parameters as one flat vector: weights, gradients and AdamW's moments.

n: trainable numbers. Everything is float32 and complete on every worker: at about one per cent of a
model it is small, one exchange moves all of it, and the state to save or to resume from is
available on every worker, whatever their number. The head is the end of the vector, so that the
optimizer has it as a group with a rate of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.train.engine.learning_rate import IS_HEAD
from jobs.train.model.base_model import is_within

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Slot:
    name: str
    parameter: nn.Parameter
    start: int
    end: int


class Bucket:
    """The trainable parameters of a model, as views of one vector where possible.

    Parameters in float32 are views of `weights_n`, and their gradients of `gradients_n`, so nothing
    is copied; those of another type (a bfloat16 head) are rounded copies.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, extras: int, head: Sequence[str] = ()
    ) -> None:
        """`head`: the modules of the head."""
        self._slots: dict[str, _Slot] = {}
        offset = head_start = 0
        for is_head in (False, True):
            head_start = offset
            for name, parameter in parameters.items():
                if is_within(name, head) == is_head:
                    end = offset + parameter.numel()
                    self._slots[name] = _Slot(name, parameter, offset, end)
                    offset = end
        device = next(iter(parameters.values())).device
        self.count = offset
        self.weights_n = torch.empty(offset, device=device)
        self.exchange_buffer = torch.zeros(offset + extras, device=device)
        self.groups = [
            self._make_group(slice(start, end), is_head=is_head)
            for start, end, is_head in ((0, head_start, False), (head_start, offset, True))
            if end > start
        ]
        """The optimizer's parameter groups, each of one part of the vector."""
        with torch.no_grad():
            for slot in self._slots.values():
                self._slice(self.weights_n, slot).copy_(slot.parameter)
                if slot.parameter.dtype == torch.float32:
                    slot.parameter.data = self._slice(self.weights_n, slot)
                    slot.parameter.grad = self._slice(self.gradients_n, slot)

    @property
    def gradients_n(self) -> Tensor:
        """Return the gradient of the step, float32 `[n]`."""
        return self.exchange_buffer[: self.count]

    @property
    def extras(self) -> Tensor:
        """Return the numbers that are exchanged behind the gradients, float32."""
        return self.exchange_buffer[self.count :]

    def collect_gradients(self) -> None:
        """Add the gradients of parameters that are not views. Call it after each backward."""
        for slot in self._slots.values():
            if slot.parameter.dtype != torch.float32 and slot.parameter.grad is not None:
                self._slice(self.gradients_n, slot).add_(slot.parameter.grad)
                slot.parameter.grad = None

    def clear(self) -> None:
        """Zero the gradients. Call it before a step's first backward."""
        self.exchange_buffer.zero_()

    def copy_to_parameters(self) -> None:
        """Round the weights into the parameters that are not views. Call it after each change of
        them.
        """
        with torch.no_grad():
            for slot in self._slots.values():
                if slot.parameter.dtype != torch.float32:
                    slot.parameter.copy_(self._slice(self.weights_n, slot))

    def split_by_name(self, vector_n: Tensor) -> dict[str, Tensor]:
        """Split a vector of length n by parameter, into copies on the CPU."""
        flat = vector_n.detach().to("cpu", copy=True)
        return {slot.name: self._slice(flat, slot) for slot in self._slots.values()}

    def fill(self, vector_n: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of some parameters into a vector of length n."""
        with torch.no_grad():
            for slot in self._slots.values():
                if slot.name in tensors:
                    self._slice(vector_n, slot).copy_(tensors[slot.name])

    def list_names(self) -> list[str]:
        """Return the parameters' names, in the order of the vector."""
        return list(self._slots)

    def get_part(self, vector_n: Tensor, name: str) -> Tensor:
        """Return one parameter's part of a vector, a view in its shape."""
        return self._slice(vector_n, self._slots[name])

    def release(self) -> None:
        """Give the parameters storage of their own again, with their present weights."""
        for slot in self._slots.values():
            slot.parameter.grad = None
            slot.parameter.data = slot.parameter.data.clone()

    def find_non_finite(self, vector_n: Tensor) -> str | None:
        """Return the first parameter whose part of the vector has a NaN or an infinity."""
        bad_indices = (~torch.isfinite(vector_n.detach())).nonzero()
        if not len(bad_indices):
            return None
        index = int(bad_indices[0])
        return next(slot.name for slot in self._slots.values() if slot.start <= index < slot.end)

    def _make_group(self, part: slice, *, is_head: bool) -> dict[str, Any]:
        weights = nn.Parameter(self.weights_n[part])
        weights.grad = self.exchange_buffer[part]
        return {"params": [weights], IS_HEAD: is_head}

    @staticmethod
    def _slice(vector: Tensor, slot: _Slot) -> Tensor:
        return vector[slot.start : slot.end].view(slot.parameter.shape)
