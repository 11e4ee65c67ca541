"""DeepSpeed's communication: the process group that it is handed, and what it sends, counted."""

from __future__ import annotations

import logging
from typing import Any

import deepspeed
import torch
from torch import Tensor

from jobs.team import GRADIENTS, Wire


def distributed(backend: str) -> None:
    """Hands DeepSpeed the process group that is there already."""
    # DeepSpeed reports its set-up line by line; only its warnings are for us.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory reduction needs a compiler and 38 s on every new machine, to save the copy
    # of a few megabytes between processes of one host.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend)


def count_deepspeed(wire: Wire, group_size: int, *, spans: bool) -> None:
    """From now on DeepSpeed's collectives are counted, as those of groups of this size.

    `spans`: whether a group reaches over more than one machine.
    """
    backend = deepspeed.comm.comm.cdb
    inner = backend._inner if isinstance(backend, _Counting) else backend
    deepspeed.comm.comm.cdb = _Counting(inner, wire, group_size, spans=spans)


class _Counting:
    """DeepSpeed's communication backend; what it gathers is weights, what it reduces gradients."""

    def __init__(self, inner: Any, wire: Wire, group_size: int, *, spans: bool) -> None:
        self._inner, self._wire, self._size, self._spans = inner, wire, group_size, spans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def all_gather_into_tensor(self, output_tensor: Tensor, *rest: Any, **named: Any) -> Any:
        self._count(self._wire.cause, _bytes(output_tensor))
        return self._inner.all_gather_into_tensor(output_tensor, *rest, **named)

    def all_gather(self, tensor_list: list[Tensor], *rest: Any, **named: Any) -> Any:
        self._count(self._wire.cause, sum(map(_bytes, tensor_list)))
        return self._inner.all_gather(tensor_list, *rest, **named)

    def all_reduce(self, tensor: Tensor, *rest: Any, **named: Any) -> Any:
        self._count(GRADIENTS, 2 * _bytes(tensor))
        return self._inner.all_reduce(tensor, *rest, **named)

    def reduce_scatter_tensor(
        self, output_tensor: Tensor, input_tensor: Tensor, **named: Any
    ) -> Any:
        # gloo has no reduce-scatter: torch reduces the whole on every worker.
        gloo = torch.distributed.get_backend() == "gloo"
        self._count(GRADIENTS, (2 if gloo else 1) * _bytes(input_tensor))
        return self._inner.reduce_scatter_tensor(output_tensor, input_tensor, **named)

    def _count(self, cause: str, whole: int) -> None:
        if self._size > 1:
            self._wire.count(cause, whole * (self._size - 1) // self._size, spans=self._spans)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
