"""Read and write parameters of which this worker may hold a shard only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


def count_elements(parameter: Tensor) -> int:
    """Return the size of the full parameter, whatever shard of it this worker holds."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@contextmanager
def gather_for_reading(*tensors: Tensor) -> Iterator[None]:
    """Gather these parameters on every rank, to read inside the block. A collective if sharded."""
    sharded = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not sharded:
        yield
        return
    # Imported here: a worker with the whole base does without DeepSpeed, which loads for a second.
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


@contextmanager
def gather_for_writing(parameter: Tensor) -> Iterator[None]:
    """Gather a parameter, and keep what every rank writes to it inside the block. A collective.

    Every rank must write the same: each stores its own shard of it.
    """
    if not hasattr(parameter, "ds_id"):
        yield
        return
    parameter.all_gather()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        parameter.partition(has_been_updated=True)  # type: ignore[attr-defined]
