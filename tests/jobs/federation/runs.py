"""Federations of tiny models without Ray: their requests, servers and results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jobs.federation.check import check_federation
from jobs.federation.partition_file import PARTITION_FILE, read_partition
from jobs.train.request import FederationRequest
from jobs.federation.server import FederationServer
from jobs.federation.sites.local_sites import LocalSites
from jobs.spec.kinds import require_kind
from jobs.spec.load import validate_spec
from jobs.spec.schema import FederatedSpec
from jobs.store.base import open_store
from jobs.store.runs.run_store import RunStore
from tests.tiny import label_rows, merge_spec, tiny_encoder, tiny_spec

RUN = "federated"
SECTION = {"clients": 4, "clients_per_round": 2, "rounds": 4, "local_steps": 2}


def folder_with_rows(folder: Path, rows: int = 60) -> Path:
    """Write a tiny encoder, rows to train on and rows to evaluate."""
    tiny_encoder(folder / "model")
    label_rows(folder / "train.jsonl", rows)
    label_rows(folder / "eval.jsonl", 14)
    return folder


def request_of(
    folder: Path, federation: Mapping[str, Any], store: str = "store", **changes: Any
) -> FederationRequest:
    """Return the request of a federation whose partition is in the store."""
    raw = tiny_spec(
        folder,
        model={"task": "sequence-classification"},
        data={"format": "classification", "eval": str(folder / "eval.jsonl"), "packing": False},
        train={"steps": None, "checkpoint_every": 1, "schedule": "constant", "warmup": 0.0},
        method={"sparse_share": 0.5},
        store=f"file://{folder / store}",
    )
    values = {**merge_spec(raw, changes), "federation": {**SECTION, **federation}}
    validated = check_federation(require_kind(validate_spec(values), FederatedSpec))
    runs = RunStore(open_store(validated.federated_spec.store), RUN)
    return validated.extend_request(validated.validated_run.make_request(RUN), runs)


def move_request(request: FederationRequest, store: str) -> FederationRequest:
    """Return the same request for another store, with the partition copied there."""
    source = RunStore(open_store(request.spec.store), request.run_id)
    target = RunStore(open_store(store), request.run_id)
    target.store.put(target.key(PARTITION_FILE), source.store.get(source.key(PARTITION_FILE)))
    return dataclasses.replace(request, spec=request.spec.model_copy(update={"store": store}))


def make_server(
    request: FederationRequest, sites: LocalSites | None = None, **options: Any
) -> FederationServer:
    """Return the server of a run that starts or resumes, by default with one site in this process."""
    store = open_store(request.spec.store)
    runs = RunStore(store, request.run_id)
    sites = sites or LocalSites(request, store, torch.device("cpu"))
    partition = read_partition(runs, request.partition)
    return FederationServer(request, runs, sites, partition, **options)


def weights_of(federation: FederationServer) -> torch.Tensor:
    """Return the weights at the end of the last stage, float32 `[n]`."""
    return federation.weights_n
