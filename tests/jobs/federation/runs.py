"""Federations of tiny models without Ray: their requests, servers and results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jobs.federation.averaging.flat_layout import make_layout
from jobs.federation.check import check_federation
from jobs.federation.partition_file import PARTITION_FILE, read_partition
from jobs.federation.round_log import open_round_log
from jobs.federation.server import make_federation
from jobs.federation.sites.local_sites import LocalSites
from jobs.spec.kinds import require_kind
from jobs.spec.load import validate_spec
from jobs.spec.schema import FederatedSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import load_newest_state
from jobs.train.hooks import RunHooks
from jobs.train.loop import StageLoop
from jobs.train.request import AdapterRequest, FederationRequest, TrainingRequest
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


def make_training_request(request: FederationRequest, run_id: str) -> TrainingRequest:
    """Return the request to fine-tune the same on all rows by one worker."""
    values = {
        field.name: getattr(request, field.name) for field in dataclasses.fields(AdapterRequest)
    }
    return TrainingRequest(**{**values, "run_id": run_id})


def move_request(request: FederationRequest, store: str) -> FederationRequest:
    """Return the same request for another store, with the partition copied there."""
    source = RunStore(open_store(request.spec.store), request.run_id)
    target = RunStore(open_store(store), request.run_id)
    target.store.put(target.key(PARTITION_FILE), source.store.get(source.key(PARTITION_FILE)))
    return dataclasses.replace(request, spec=request.spec.model_copy(update={"store": store}))


def make_loop(
    request: FederationRequest, sites: LocalSites | None = None, **options: Any
) -> StageLoop:
    """Return the loop of a run that starts or resumes, by default with a site in this process."""
    store = open_store(request.spec.store)
    runs = RunStore(store, request.run_id)
    sites = sites or LocalSites(request, store, torch.device("cpu"))
    partition = read_partition(runs, request.partition)
    return make_federation(request, runs, sites, partition, **options)


def run_federation(folder: Path, federation: Mapping[str, Any], store: str, **changes: Any) -> Run:
    """Run a federation to its end."""
    return run_request(request_of(folder, federation, store=store, **changes))


def run_request(request: FederationRequest, sites: LocalSites | None = None, **options: Any) -> Run:
    """Run a request to its end."""
    loop = make_loop(request, sites, **options)
    loop.run()
    return Run(RunStore(open_store(request.spec.store), request.run_id), loop)


@dataclasses.dataclass(frozen=True)
class Run:
    """A federation that has ended."""

    runs: RunStore
    loop: StageLoop

    @property
    def ledger(self) -> Mapping[str, Any]:
        """Return the ledger as the run has it."""
        return self.loop.trainer.ledger

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights of the last checkpoint, by name."""
        state = load_newest_state(self.runs)
        assert state is not None
        return dict(sorted(state.weights.items()))

    @property
    def weights_n(self) -> torch.Tensor:
        """Return the same as one vector, float32 `[n]`."""
        return make_layout(self.weights).flatten(self.weights)

    def read_rounds(self) -> list[dict[str, Any]]:
        """Return the lines of rounds.jsonl."""
        return open_round_log(self.runs).tail(0)[0]

    def read_events(self, kind: str) -> list[dict[str, Any]]:
        """Return the run's events of one kind."""
        return [event for event in self.runs.events.tail(0)[0] if event["event"] == kind]


class Killed(Exception):
    """The server was killed."""


class KillAfter(RunHooks):
    """Kills the server between two rounds, when its checkpoint is written."""

    wait_for_checkpoints = True

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def on_step_end(self, step: int) -> None:
        if step == self._rounds:
            raise Killed
