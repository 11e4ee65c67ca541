"""The factory of engines: from the spec, the plan and the workers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from jobs.plan.plan import Plan, split_batch
from jobs.spec.schema import RunSpec
from jobs.train.comm.collectives import WorkerContext
from jobs.train.engine.engine import CompactEngine, Engine, EngineOptions

if TYPE_CHECKING:
    from jobs.train.model.base_shards import BaseShards


def make_engine(
    spec: RunSpec, plan: Plan, model: nn.Module, context: WorkerContext, shards: BaseShards | None
) -> Engine:
    """Return the stage's engine. `shards` hold the base if it is sharded. A collective."""
    cluster = spec.cluster
    options = replace(
        make_engine_options(
            spec,
            sharding=plan.sharding,
            # Split again: an elastic run may have another number of workers than its plan.
            micro_batch_size=spec.train.micro_batch_size,
            world_size=context.world_size,
            head=plan.head_modules,
        ),
        exchange=getattr(torch, cluster.exchange_dtype),
        sync_every=cluster.sync_every,
        outer=cluster.outer,
        average=cluster.average,
    )
    if spec.method.kind == "full":
        # Imported here: DeepSpeed loads for a second, which the other methods do without.
        from jobs.train.engine.full_engine import FullEngine

        return FullEngine(model, options, context)
    return CompactEngine(model, options, context, shards)


def make_engine_options(
    spec: RunSpec,
    *,
    sharding: str,
    micro_batch_size: int,
    world_size: int,
    head: tuple[str, ...],
) -> EngineOptions:
    """Return the options of one step, for workers that exchange full gradients at each.

    `head`: the modules of the head, which has a learning rate of its own.
    """
    train = spec.train
    _, micro, accumulation = split_batch(train.batch_size, micro_batch_size, world_size)
    return EngineOptions(
        sharding=sharding,
        bfloat16=spec.model.dtype == "bfloat16",
        micro_batch_size=micro,
        accumulation=accumulation,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        head=head,
    )
