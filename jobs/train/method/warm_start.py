"""Where a training goes on from another adapter: its factors, values, head, or the whole model.

Pulled and checked against its manifest on each worker. A LoRA that was scaled otherwise is brought
to the spec's scale, so that before step 0 the model computes what the adapter did.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from jobs.errors import Fault, InputError
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.base import ObjectStore
from jobs.train.request import AdapterRequest
from slora.formats.peft import LoraAdapter, SparseAdapter, read_adapter
from slora.handoff.low_rank_init import LowRankInit
from slora.masks.mask import Mask


@dataclass(frozen=True)
class WarmStart:
    """What a training finds there before its first step."""

    model: Path | None = None
    """The folder of a whole model, of kind full."""
    inits: Mapping[str, LowRankInit] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)


@contextmanager
def load_warm_start(request: AdapterRequest, store: ObjectStore) -> Iterator[WarmStart | None]:
    """The request's parent, in a folder that lives as long as the block; None without a parent.

    Raises NotFound, DigestMismatch, BadAdapter, and InputError for one that is of another kind.
    """
    if request.parent is None:
        yield None
        return
    manifest = resolve_adapter(store, request.parent)
    with tempfile.TemporaryDirectory(prefix="slora-parent-") as scratch:
        folder = pull(store, manifest, Path(scratch) / "adapter")
        kind = request.spec.method.kind
        if kind == manifest.kind == "full":
            yield WarmStart(model=folder)
            return
        adapter = None if manifest.kind == "full" else read_adapter(folder)
        if kind == "sparse" and isinstance(adapter, SparseAdapter) and not adapter.factors:
            yield WarmStart(values=adapter.values, masks=adapter.masks, head=adapter.head)
        elif kind == "lora" and isinstance(adapter, LoraAdapter):
            inits = _rescale_factors(adapter, request.spec.method.scale)
            yield WarmStart(inits=inits, head=adapter.head)
        else:
            problem = f"{kind} can't go on from {manifest.label}, of kind {manifest.kind}"
            raise InputError([Fault("retrain.start", problem, "Use scratch.")])


def _rescale_factors(adapter: LoraAdapter, scale: float) -> dict[str, LowRankInit]:
    factor = adapter.scale / scale
    return {
        name: LowRankInit(a_RI.float(), b_OR.float() * factor)
        for name, (a_RI, b_OR) in adapter.factors.items()
    }
