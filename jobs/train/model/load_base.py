"""The base of a training on one worker: loaded, frozen except for its head, and placed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from jobs.plan.packing_choice import PackingChoice
from jobs.store.base import ObjectStore
from jobs.train.attention.half_attention import use_products_in_sdpa
from jobs.train.comm.collectives import WorkerContext
from jobs.train.engine.chunked_loss import LossChoice
from jobs.train.method.warm_start import WarmStart, load_warm_start
from jobs.train.model.activation_checkpoints import checkpoint_activations
from jobs.train.model.base_model import list_towers, load_model
from jobs.train.model.settle_loss import settle_loss
from jobs.train.model.settle_packing import settle_packing
from jobs.train.model.tokenizer import add_tokens, load_tokenizer
from jobs.train.monitor.usage import reset_memory_peak
from jobs.train.request import AdapterRequest
from slora.formats.merge import load_head
from slora.layers.install import freeze
from slora.layers.targets import find_targets
from slora.layers.token_rows import install_token_rows, resize_for_tokens

if TYPE_CHECKING:
    from jobs.train.model.base_shards import BaseShards


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
    packing: PackingChoice
    """How rows are packed, now that the model has been tried."""
    loss: LossChoice
    """How the loss of tokens is computed."""


BaseLoader = Callable[[AdapterRequest, ObjectStore, WorkerContext], LoadedBase]
"""Returns the base before any layer is installed: `load_base`, unless a caller that trains many
runs in one process has it loaded.
"""


def load_base(request: AdapterRequest, store: ObjectStore, context: WorkerContext) -> LoadedBase:
    """Load the request's base, or its parent if that is a full model. A collective if sharded."""
    reset_memory_peak(context.device)
    spec, folder = request.spec, str(request.base)
    use_products_in_sdpa()
    tokenizer = load_tokenizer(folder)
    with load_warm_start(request, store) as parent:
        model = load_model(
            str(parent.model if parent and parent.model else folder),
            task=spec.model.task,
            dtype=spec.model.dtype,
            attention=spec.model.attention,
            labels=request.labels,
            label_kind=spec.data.labels,
            seed=spec.train.seed,
            new_head=request.plan.new_head and parent is None,
        )
    tokens = spec.method.train_tokens
    if tokens:
        ids = add_tokens(tokenizer, tokens)
        resize_for_tokens(model, max(ids) + 1)
    if parent is not None and not tokens:
        load_head(model, parent.head, folder)
    is_full = spec.method.kind == "full"
    head = request.plan.head_modules
    freeze(model, trainable=[model] if is_full else map(model.get_submodule, head))
    if tokens:
        install_token_rows(model, ids)
        if parent is not None:
            load_head(model, parent.head, folder)
    targets = {}
    if not is_full:
        targets = find_targets(
            model,
            request.plan.targets,
            head=map(model.get_submodule, head),
            towers=list_towers(model),
        )
    shards = None
    if is_full or request.plan.sharding == "replicate":
        model.to(context.device)
    else:
        # Imported here: DeepSpeed loads for a second, which only a sharded base needs.
        from jobs.train.model.base_shards import BaseShards

        shards = BaseShards(model, request.plan.sharding, context)
    packing = settle_packing(spec, request.plan.packing, model, context, shards=shards)
    loss = settle_loss(spec, model, context, shards=shards)
    if spec.train.activation_checkpointing:
        checkpoint_activations(model, is_sharded=request.plan.sharding != "replicate")
    return LoadedBase(model, tokenizer, targets, shards, parent, packing, loss)
