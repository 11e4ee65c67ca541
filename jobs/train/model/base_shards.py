"""The frozen base in shards: DeepSpeed's ZeRO-3 over the workers of a machine, or over all.

Trainable parameters are hidden from DeepSpeed, so that only the base is sharded. Each weight is
gathered for one layer's forward and again for its backward, and released after each: the cost of a
step is then known before it runs.

`node` shards the base among the workers of one machine by their own process group. DeepSpeed's hpZ
would do so with a second copy, sharded over all workers, beside it: a base that never changes needs
no such copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload, ZeROOrderedDict
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.utils.timer import NoopTimer
from torch import nn

from jobs.train.comm.collectives import WorkerContext
from jobs.train.comm.deepspeed_comm import count_deepspeed_traffic, init_deepspeed
from jobs.train.model.frozen_linear import drop_gathered_weights

MAX_LIVE_PARAMETERS = 100_000_000
"""Parameters of the base that may be gathered at once on a GPU, where the next layers are fetched
while one computes. On a CPU nothing overlaps, and nothing is fetched before it is needed.
"""
ZERO_CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


class BaseShards:
    """A model's frozen parameters, sharded over a group of workers."""

    def __init__(self, model: nn.Module, sharding: str, context: WorkerContext) -> None:
        """Move the model to the worker's device, and shard its frozen parameters. All ranks must
        hold the same model. A collective.
        """
        self._model, self._context = model, context
        init_deepspeed()
        self._group, size = _make_process_group(sharding, context)
        spans_nodes = sharding == "cluster" and context.node_count > 1
        count_deepspeed_traffic(context.collectives, size, spans_nodes=spans_nodes)
        init_options = {"data_parallel_group": self._group, "config_dict_or_path": ZERO_CONFIG}
        init = Init(dtype=next(model.parameters()).dtype, enabled=False, **init_options)
        for parameter in model.parameters():
            # Avoid Init's own conversion, which sends the full base from rank 0 to all: every
            # worker has read the same files.
            parameter.data = parameter.data.to(context.device)
            if not parameter.requires_grad:
                init._convert_to_deepspeed_param(parameter)
                parameter.partition()  # type: ignore[attr-defined]
        for buffer in model.buffers():
            buffer.data = buffer.data.to(context.device)

    @contextmanager
    def gather_on_demand(self) -> Iterator[None]:
        """Gather each layer's weights when it computes, inside the block."""
        hidden = hide_trainable(self._model)
        on_gpu = self._context.device.type == "cuda"
        offload = DeepSpeedZeRoOffload(
            self._model,
            timers=NoopTimer(),
            ds_config=ZERO_CONFIG,
            overlap_comm=on_gpu,
            prefetch_bucket_size=MAX_LIVE_PARAMETERS // 4 if on_gpu else 0,
            max_reuse_distance=0,
            max_live_parameters=MAX_LIVE_PARAMETERS if on_gpu else 0,
            param_persistence_threshold=0,
            dp_process_group=self._group,
        )
        try:
            with drop_gathered_weights(self._model), _gather_foreign_reads(self._model):
                yield
        finally:
            offload.partition_all_parameters()
            offload.destroy()
            restore_hidden(hidden)


@contextmanager
def _gather_foreign_reads(model: nn.Module) -> Iterator[None]:
    """Inside the block, a forward also gathers a weight that is read past its module.

    Some layers read `self.conv1d.weight` for a kernel of their own and never call `conv1d`, whose
    call would gather it. DeepSpeed's engine sets the same mark in its forward.
    """

    def mark(is_forward: bool) -> None:
        for module in model.modules():
            # Nothing of a layer that was installed inside the block is sharded.
            if isinstance(module._parameters, ZeROOrderedDict):
                module._parameters._in_forward = is_forward

    begin = model.register_forward_pre_hook(lambda *_: mark(True))
    end = model.register_forward_hook(lambda *_: mark(False), always_call=True)
    try:
        yield
    finally:
        begin.remove()
        end.remove()


Hidden = list[tuple[nn.Module, str, nn.Parameter]]


def hide_trainable(model: nn.Module) -> Hidden:
    """Unregister the trainable parameters; the layers still find them by name."""
    hidden = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in list(module._parameters.items())
        if parameter is not None and not hasattr(parameter, "ds_id")
    ]
    for module, name, parameter in hidden:
        del module._parameters[name]
        module.__dict__[name] = parameter
    return hidden


def restore_hidden(hidden: Hidden) -> None:
    """Register the parameters again that `hide_trainable` unregistered."""
    for module, name, parameter in hidden:
        del module.__dict__[name]
        module._parameters[name] = parameter


def _make_process_group(sharding: str, context: WorkerContext) -> tuple[Any, int]:
    """Return the process group that the base is sharded over, and its size. A collective."""
    if sharding == "cluster" or context.node_count == 1:
        return torch.distributed.group.WORLD, context.world_size
    own_group = None
    for node in range(context.node_count):
        ranks = [rank for rank, rank_node in enumerate(context.node_of) if rank_node == node]
        group = torch.distributed.new_group(ranks)
        own_group = group if node == context.node_of[context.rank] else own_group
    return own_group, len(context.list_node_peers())
