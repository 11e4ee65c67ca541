"""The base of a training on one worker: loaded, frozen except for its head, and placed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from jobs.store.base import ObjectStore
from jobs.train.comm.collectives import WorkerContext
from jobs.train.method.warm_start import WarmStart, load_warm_start
from jobs.train.model.base_model import (
    find_trained_head,
    find_untargeted_modules,
    load_model,
    load_tokenizer,
)
from jobs.train.model.base_shards import BaseShards
from jobs.train.request import AdapterRequest
from slora.formats.merge import load_head
from slora.layers.install import freeze
from slora.layers.targets import find_targets


@dataclass(frozen=True)
class LoadedBase:
    """The base before the method's layers are installed."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    targets: dict[str, Any]
    """The layers to adapt, by name; empty if the full model is trained."""
    shards: BaseShards | None
    """None unless this worker holds a shard of the base."""
    warm_start: WarmStart | None
    """The parent's contents, or None without a parent."""


def load_base(request: AdapterRequest, store: ObjectStore, context: WorkerContext) -> LoadedBase:
    """Load the request's base, or its parent if that is a full model. A collective if sharded."""
    spec, folder = request.spec, str(request.base)
    tokenizer = load_tokenizer(folder)
    with load_warm_start(request, store) as parent:
        model = load_model(
            str(parent.model if parent and parent.model else folder),
            task=spec.model.task,
            dtype=spec.model.dtype,
            labels=request.labels,
            seed=spec.train.seed,
        )
    if parent is not None:
        load_head(model, parent.head, folder)
    is_full = spec.method.kind == "full"
    freeze(model, trainable=[model] if is_full else find_trained_head(model, spec.model.task))
    targets = {}
    if not is_full:
        head = find_untargeted_modules(model, spec.model.task)
        targets = find_targets(model, spec.method.targets, head=head)
    shards = None
    if is_full or request.plan.sharding == "replicate":
        model.to(context.device)
    else:
        shards = BaseShards(model, request.plan.sharding, context)
    return LoadedBase(model, tokenizer, targets, shards, parent)
