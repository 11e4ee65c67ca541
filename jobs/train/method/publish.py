"""Publish what was trained as a committed adapter: the folder, then the store, manifest last."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jobs.errors import StoreError, SupersededAttempt
from jobs.inspect.base_source import find_base_source
from jobs.plan.plan import Plan
from jobs.spec.load import dump_spec
from jobs.store.adapters.manifest import (
    BaseRecord,
    DataRecord,
    Manifest,
    ManifestDraft,
    MaskRecord,
    RateRecord,
)
from jobs.store.adapters.operations import commit
from jobs.store.adapters.outbox import add_to_outbox
from jobs.store.base import ObjectStore
from jobs.store.settings import read_store_settings
from jobs.store.trust.trust_policy import load_configured_signer
from jobs.train.method.assemble import assemble_adapter
from jobs.train.method.full_model import write_full_model
from jobs.train.method.runner import MethodRunner
from jobs.train.model.tokenizer import save_tokenizer
from jobs.train.request import AdapterRequest, FederationRequest
from slora.formats.peft import (
    LoraAdapter,
    SparseAdapter,
    make_compact,
    write_lora,
    write_sparse,
)
from slora.formats.peft_check import build_empty_model, find_peft_loss


def publish(
    store: ObjectStore,
    request: AdapterRequest,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Mapping[str, Tensor],
    method: MethodRunner,
    *,
    attempt: int,
    evaluations: Mapping[str, Mapping[str, float]],
    ledger: Mapping[str, float | int],
    on_peft_loss: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write the adapter's folder and commit it. Raise BadAdapter, StoreError.

    `on_peft_loss` gets what stock PEFT would lose of a LoRA; it is stored in the compact form then.
    """
    with tempfile.TemporaryDirectory(prefix="slora-adapter-") as scratch:
        folder = Path(scratch)
        if request.spec.method.kind == "full":
            write_full_model(folder, model, tokenizer, weights, base=request.base)
        else:
            adapter = assemble_adapter(request, model, weights, method)
            if loss := write_adapter(folder, adapter, build_base=lambda: build_empty_model(model)):
                on_peft_loss(loss)
            if request.spec.method.train_tokens:
                # New tokens, or the ids that its rows belong to.
                save_tokenizer(tokenizer, folder)
        return _commit_or_spool(store, folder, _make_draft(request, attempt, evaluations, ledger))


def write_adapter(
    folder: Path, adapter: LoraAdapter | SparseAdapter, *, build_base: Callable[[], nn.Module]
) -> str:
    """Write the adapter's folder; in the compact form what stock PEFT can't hold.

    Return what PEFT would lose, or an empty string. The base needs no weights.
    """
    if isinstance(adapter, SparseAdapter):
        write_sparse(folder, adapter)
        return ""
    write_lora(folder, adapter)
    loss = find_peft_loss(build_base(), folder, adapter)
    if loss:
        for path in folder.iterdir():
            path.unlink()
        write_sparse(folder, make_compact(adapter))
    return loss


def _commit_or_spool(store: ObjectStore, folder: Path, draft: ManifestDraft) -> Manifest:
    """Commit the folder; if the store fails, save it on this machine, and say so in the error."""
    try:
        return commit(store, folder, draft, sign=load_configured_signer())
    except SupersededAttempt:
        raise
    except StoreError as error:
        path = add_to_outbox(read_store_settings().outbox, store.url(""), folder, draft)
        hint = f"The adapter was saved on {os.uname().nodename} in {path}"
        translated = StoreError(f"{error} {hint}: run `slora adapters send-pending` there.")
        translated.exit_code = error.exit_code
        raise translated from error


def _record_rates(plan: Plan) -> RateRecord:
    heads = {stage.name: stage.head_learning_rate for stage in plan.stages}
    return RateRecord(
        stages={stage.name: stage.learning_rate for stage in plan.stages},
        head={name: rate for name, rate in heads.items() if rate is not None},
        by_rule=plan.rates.by_rule,
    )


def _make_draft(
    request: AdapterRequest,
    attempt: int,
    evaluations: Mapping[str, Mapping[str, float]],
    ledger: Mapping[str, Any],
) -> ManifestDraft:
    spec, train = request.spec, request.train_data
    source = find_base_source(spec.model.path, request.base)
    has_masks = spec.method.kind in ("slora", "sparse")
    return ManifestDraft(
        name=spec.name,
        kind=spec.method.kind,
        run=request.run_id,
        search=request.search,
        parent=request.parent,
        federation=request.federation.model_dump()
        if isinstance(request, FederationRequest)
        else None,
        attempt=attempt,
        base=BaseRecord(
            path=source.path,
            revision=source.revision,
            digest=request.base_digest,
            files=request.base_files or None,
            dtype=request.plan.dtype.dtype,
        ),
        data=DataRecord(
            train_sha256=str(train.sha256),
            eval_sha256=request.eval_data.sha256 if request.eval_data else None,
            row_order=f"shuffled by seed {spec.train.seed}, again in each epoch",
            rows=train.rows,
        ),
        mask=MaskRecord(
            strategy=spec.method.mask, seed=spec.train.seed, density=spec.method.density
        )
        if has_masks
        else None,
        rates=_record_rates(request.plan),
        spec_sha256=hashlib.sha256(dump_spec(spec).encode()).hexdigest(),
        code_version=version("slora"),
        world_size=int(ledger["workers"]),
        evaluation={
            at: {name: value for name, value in metrics.items() if math.isfinite(value)}
            for at, metrics in evaluations.items()
        },
        ledger=_flatten_ledger(ledger),
    )


def _flatten_ledger(ledger: Mapping[str, Any]) -> dict[str, float | int]:
    """Return the ledger's numbers without its tables: bytes by stage and cause, the peak memory."""
    figures = {name: value for name, value in ledger.items() if isinstance(value, int | float)}
    for stage, causes in ledger.get("wire", {}).items():
        for cause, traffic in causes.items():
            figures[f"{stage}_{cause}_bytes"] = traffic["bytes"]
    peaks = [peak["peak"] for peak in ledger.get("memory", {}).values()]
    return {**figures, "peak_memory": max(peaks)} if peaks else figures
