"""Federated runs of tiny models without Ray: what they are asked, and what they left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jobs.federation.server import FederationServer
from jobs.federation.sites.client_rows import make_request_partition
from jobs.federation.sites.local_sites import LocalSites
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from jobs.spec.sections.federation import FederationSection
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.request import Request
from tests.tiny import label_rows, merge_spec, tiny_encoder, tiny_spec

RUN = "federated"


def folder_with_rows(folder: Path, rows: int = 60) -> Path:
    """A tiny encoder, rows to learn from and to be judged by."""
    tiny_encoder(folder / "model")
    label_rows(folder / "train.jsonl", rows)
    label_rows(folder / "eval.jsonl", 14)
    return folder


def request_of(
    folder: Path, federation: Mapping[str, Any], store: str = "store", **changes: Any
) -> Request:
    """What sites are told."""
    section = FederationSection.model_validate(
        {"clients": 4, "clients_per_round": 2, "rounds": 4, "local_steps": 2, **federation}
    )
    raw = tiny_spec(
        folder,
        model={"task": "sequence-classification"},
        data={"format": "classification", "eval": str(folder / "eval.jsonl"), "packing": False},
        train={
            "steps": section.rounds * section.local_steps,
            "checkpoint_every": 1,
            "schedule": "constant",
            "warmup": 0.0,
        },
        method={"sparse_share": 0.5},
        store=f"file://{folder / store}",
    )
    checked = validate_run(validate_spec(merge_spec(raw, changes)))
    return dataclasses.replace(checked.make_request(RUN), federation=section)


def federation_of(request: Request, **named: Any) -> FederationServer:
    """The run, ready to begin or to go on, with one site in this process."""
    store = open_store(request.spec.store)
    sites = LocalSites(request, store, torch.device("cpu"))
    return FederationServer(
        request, RunStore(store, request.run_id), sites, make_request_partition(request)
    )


def weights_of(federation: FederationServer) -> torch.Tensor:
    """Where its last stage ended, float32 `[n]`."""
    return federation.weights_n
