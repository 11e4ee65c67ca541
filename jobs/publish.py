"""From what was trained to a committed adapter: the folder, then the store, manifest last."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jobs.adaptation import Adaptation
from jobs.assemble import assemble
from jobs.errors import Replaced, StoreError
from jobs.request import Request
from jobs.spec_file import dump_spec
from jobs.store.adapters import commit
from jobs.store.manifest import Base, Data, Draft, Manifest, Mask
from jobs.store.objects import ObjectStore
from jobs.store.settings import store_settings
from jobs.store.spool import keep, signing
from slora.folder import LoraAdapter, write_lora, write_sparse


def publish(
    store: ObjectStore,
    request: Request,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Mapping[str, Tensor],
    method: Adaptation,
    *,
    attempt: int,
    evaluations: Mapping[str, Mapping[str, float]],
    ledger: Mapping[str, float | int],
) -> Manifest:
    """Writes the adapter's folder and commits it. Raises BadAdapter, StoreError."""
    with tempfile.TemporaryDirectory(prefix="slora-adapter-") as made:
        folder = Path(made)
        if request.spec.method.kind == "full":
            _write_full(folder, model, tokenizer, weights)
        else:
            adapter = assemble(request, model, weights, method)
            write = write_lora if isinstance(adapter, LoraAdapter) else write_sparse
            write(folder, adapter)  # type: ignore[arg-type]
        return _committed(store, folder, _draft(request, attempt, evaluations, ledger))


def _committed(store: ObjectStore, folder: Path, draft: Draft) -> Manifest:
    """Commits the folder; what can't be sent now is kept on this machine, and the error says so."""
    try:
        return commit(store, folder, draft, sign=signing())
    except Replaced:
        raise
    except StoreError as failed:
        kept = keep(store_settings().spool, store.url(""), folder, draft)
        waits = f"The adapter waits on {os.uname().nodename} in {kept}"
        told = StoreError(f"{failed} {waits}: `slora adapters recover` there sends it.")
        told.exit_code = failed.exit_code
        raise told from failed


def _write_full(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Mapping[str, Tensor],
) -> None:
    # save_pretrained would tie and name the weights as the model does; under ZeRO-3 it would save
    # empty ones, so the whole tensors are handed to it.
    state = {name: tensor.to(model.dtype) for name, tensor in weights.items()}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def _draft(
    request: Request,
    attempt: int,
    evaluations: Mapping[str, Mapping[str, float]],
    ledger: Mapping[str, Any],
) -> Draft:
    spec, train = request.spec, request.train
    sparse = spec.method.kind in ("slora", "sparse")
    return Draft(
        name=spec.name,
        kind=spec.method.kind,
        run=request.run_id,
        search=request.search,
        parent=request.parent,
        federation=request.federation.model_dump() if request.federation else None,
        attempt=attempt,
        base=Base(path=_base_path(request), digest=request.base_digest),
        data=Data(
            train_sha256=str(train.sha256),
            eval_sha256=request.evaluation.sha256 if request.evaluation else None,
            row_order=f"shuffled by seed {spec.train.seed}, each epoch anew",
            rows=train.rows,
        ),
        mask=Mask(strategy=spec.method.mask, seed=spec.train.seed, density=spec.method.density)
        if sparse
        else None,
        spec_sha256=hashlib.sha256(dump_spec(spec).encode()).hexdigest(),
        code_version=version("slora"),
        world_size=int(ledger["workers"]),
        evaluation={
            at: {name: value for name, value in measured.items() if math.isfinite(value)}
            for at, measured in evaluations.items()
        },
        ledger=_summary(ledger),
    )


def _base_path(request: Request) -> str:
    """Where others find the base too: its URL, not the cache of this machine."""
    path = request.spec.model.path
    return path if path.startswith("s3://") else str(request.base)


def _summary(ledger: Mapping[str, Any]) -> dict[str, float | int]:
    """The ledger's figures without their tables: bytes by stage and cause, the highest memory."""
    found = {name: value for name, value in ledger.items() if isinstance(value, int | float)}
    for stage, causes in ledger.get("wire", {}).items():
        for cause, sent in causes.items():
            found[f"{stage}_{cause}_bytes"] = sent["bytes"]
    peaks = [told["peak"] for told in ledger.get("memory", {}).values()]
    return {**found, "peak_memory": max(peaks)} if peaks else found
