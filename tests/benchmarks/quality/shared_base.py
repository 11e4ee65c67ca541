"""A base that is loaded once and copied for each training of a process, bit for bit.

A training changes its copy only. The digest of what was loaded is compared with that of each copy,
so that a training that reached into the original would be noticed by the next.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from typing import Any

import torch
from torch import nn

from jobs.store.base import ObjectStore
from jobs.train.comm.collectives import WorkerContext
from jobs.train.model.load_base import LoadedBase, load_base
from jobs.train.request import AdapterRequest

MAX_BASES = 3
"""Originals that a process holds: a classifier's head differs by seed, and a base by its dtype."""


class ChangedBase(Exception):
    """A training changed the weights that its successors start from."""


class SharedBases:
    """The loaded bases of one process; `load` has the signature of `load_base`."""

    def __init__(self) -> None:
        self._bases: dict[tuple[Any, ...], tuple[LoadedBase, str]] = {}

    def load(
        self, request: AdapterRequest, store: ObjectStore, context: WorkerContext
    ) -> LoadedBase:
        """Return a copy of the request's base. Raise ChangedBase, and what `load_base` raises."""
        identity = _identify(request)
        if identity not in self._bases:
            while len(self._bases) >= MAX_BASES:
                del self._bases[next(iter(self._bases))]
            base = load_base(request, store, context)
            self._bases[identity] = base, digest_weights(base.model)
        original, digest = self._bases[identity]
        model = copy.deepcopy(original.model)
        if digest_weights(model) != digest:
            raise ChangedBase(f"{request.base}: the loaded weights are not those of the file")
        targets = {name: model.get_submodule(name) for name in original.targets}
        return dataclasses.replace(original, model=model, targets=targets)


def digest_weights(model: nn.Module) -> str:
    """Return a digest of all parameters and buffers: names, dtypes and bits."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _identify(request: AdapterRequest) -> tuple[Any, ...]:
    spec = request.spec
    seed = spec.train.seed if request.plan.head_modules else 0
    model, is_full = spec.model, spec.method.kind == "full"
    data = spec.data.max_length, spec.data.packing, spec.train.micro_batch_size
    how = model.task, model.dtype, model.attention, request.labels, seed, is_full
    return (request.base_digest, *how, *data, str(request.plan.targets))
