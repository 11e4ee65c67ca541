"""Warm start from another adapter: its factors, values, head, or the full model.

Each worker pulls it and checks it against its manifest. A LoRA with another scale is rescaled to
the spec's, so that before step 0 the model computes what the adapter did.
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
    """The contents of the parent adapter."""

    model: Path | None = None
    """The folder of a full model, of kind full."""
    inits: Mapping[str, LowRankInit] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)


@contextmanager
def load_warm_start(request: AdapterRequest, store: ObjectStore) -> Iterator[WarmStart | None]:
    """Load the request's parent into a folder that exists inside the block; None without a parent.

    Raise NotInStore, DigestMismatch, BadAdapter, and InputError for one of another kind.
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
        elif kind == "lora" and adapter is not None and _is_low_rank(adapter):
            inits = _rescale_factors(adapter, request.spec.method.scale)
            yield WarmStart(inits=inits, head=adapter.head)
        else:
            problem = f"{manifest.label} is of kind {manifest.kind}: {kind} can't start from it"
            raise InputError([Fault("retrain.start", problem, "Use retrain.start: scratch.")])


def _is_low_rank(adapter: LoraAdapter | SparseAdapter) -> bool:
    """Return True for a LoRA in either form: a base that PEFT can't hold one of has the compact."""
    return isinstance(adapter, LoraAdapter) or not adapter.values


def _rescale_factors(adapter: LoraAdapter | SparseAdapter, scale: float) -> dict[str, LowRankInit]:
    factor = adapter.scale / scale
    return {
        name: LowRankInit(a_RI.float(), b_OR.float() * factor)
        for name, (a_RI, b_OR) in adapter.factors.items()
    }
