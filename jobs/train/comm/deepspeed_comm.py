"""DeepSpeed's communication: it is given the existing process group, and its traffic is counted."""

from __future__ import annotations

import logging
from typing import Any

import deepspeed
import torch
from torch import Tensor

from jobs.train.comm.collectives import GRADIENTS, Collectives


def init_deepspeed() -> None:
    """Let DeepSpeed use the process group that exists already. May be called again."""
    # DeepSpeed logs its set-up line by line; only its warnings matter here.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory reduction needs a compiler and 38 s on every new machine, to save the copy
    # of a few megabytes between processes of one host.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())


def count_deepspeed_traffic(
    collectives: Collectives, group_size: int, *, spans_nodes: bool
) -> None:
    """Count DeepSpeed's collectives from now on, as those of groups of this size.

    `spans_nodes`: whether a group spans more than one machine.
    """
    backend = deepspeed.comm.comm.cdb
    inner = backend._inner if isinstance(backend, _CountingBackend) else backend
    deepspeed.comm.comm.cdb = _CountingBackend(
        inner, collectives, group_size, spans_nodes=spans_nodes
    )


class _CountingBackend:
    """DeepSpeed's communication backend: gathers are of weights, reductions of gradients."""

    def __init__(
        self, inner: Any, collectives: Collectives, group_size: int, *, spans_nodes: bool
    ) -> None:
        self._inner, self._collectives, self._group_size, self._spans_nodes = (
            inner,
            collectives,
            group_size,
            spans_nodes,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def all_gather_into_tensor(self, output_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._count(self._collectives.cause, _count_bytes(output_tensor))
        return self._inner.all_gather_into_tensor(output_tensor, *args, **kwargs)

    def all_gather(self, tensor_list: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        self._count(self._collectives.cause, sum(map(_count_bytes, tensor_list)))
        return self._inner.all_gather(tensor_list, *args, **kwargs)

    def all_reduce(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._count(GRADIENTS, 2 * _count_bytes(tensor))
        return self._inner.all_reduce(tensor, *args, **kwargs)

    def reduce_scatter_tensor(
        self, output_tensor: Tensor, input_tensor: Tensor, **kwargs: Any
    ) -> Any:
        # gloo has no reduce-scatter: torch reduces the full tensor on every worker.
        is_gloo = torch.distributed.get_backend() == "gloo"
        self._count(GRADIENTS, (2 if is_gloo else 1) * _count_bytes(input_tensor))
        return self._inner.reduce_scatter_tensor(output_tensor, input_tensor, **kwargs)

    def _count(self, cause: str, size: int) -> None:
        if self._group_size > 1:
            self._collectives.count_traffic(
                cause,
                size * (self._group_size - 1) // self._group_size,
                spans_nodes=self._spans_nodes,
            )


def _count_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
