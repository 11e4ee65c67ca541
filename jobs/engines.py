"""Which engine trains a stage, and with what options: from the spec and the workers there are."""

from __future__ import annotations

import torch
from torch import nn

from jobs.base_shards import BaseShards
from jobs.engine import CompactEngine, Engine, EngineOptions
from jobs.full_engine import FullEngine
from jobs.plan import Plan, deal
from jobs.spec import Spec
from jobs.team import Team


def engine_for(
    spec: Spec, plan: Plan, model: nn.Module, team: Team, shards: BaseShards | None
) -> Engine:
    """The stage's engine. `shards` hold the base where it is cut. A collective."""
    train, cluster = spec.train, spec.cluster
    # Dealt anew: an elastic run may have another number of workers than its plan.
    _, micro, accumulation = deal(train.batch_size, train.micro_batch_size, team.world_size)
    options = EngineOptions(
        sharding=plan.sharding,
        bfloat16=spec.model.dtype == "bfloat16",
        micro_batch_size=micro,
        accumulation=accumulation,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        exchange=getattr(torch, cluster.exchange_dtype),
        sync_every=cluster.sync_every,
        outer=cluster.outer,
        average=cluster.average,
    )
    if spec.method.kind == "full":
        return FullEngine(model, options, team)
    return CompactEngine(model, options, team, shards)
