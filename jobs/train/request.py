"""Requests: what the workers of one run are given, as frozen values. One type for each kind of run.

They cross processes by pickle, so they hold plain values only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from jobs.inspect.datasets.scan import DatasetScan
from jobs.plan.packing_choice import PackingChoice
from jobs.plan.plan import Plan
from jobs.spec.schema import RunSpec
from jobs.spec.sections.federation import FederationSection
from jobs.store.adapters.manifest import BaseFile
from jobs.train.monitor.phases import PhaseStart

HELD_OUT, PREVIOUS_EVAL = "held-out", "before"
"""The two sets of rows that adapters are evaluated on: those that the spec holds out now, and those
that an earlier adapter was evaluated on."""

EVALUATION_FILE = "evaluation.json"
"""Written when adapters were evaluated: the inputs, and metrics by adapter and set of rows."""

HooksFactory = Callable[[], Any]
"""Makes the `RunHooks` of a run in the process that trains, where torch is loaded; picklable."""


@dataclass(frozen=True)
class HeldOutRows:
    """Rows that an earlier adapter was evaluated on."""

    scan: DatasetScan
    path: str
    """As data.eval, or as data.train if they are a share of it."""
    file_count: int | None = None
    """Use only the first so many files; None means all."""
    fraction: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """The part that every kind of run has."""

    spec: RunSpec
    run_id: str
    plan: Plan
    base: Path
    base_digest: str
    base_files: tuple[BaseFile, ...] = ()
    """The files that the digest is of."""
    train_data: DatasetScan
    eval_data: DatasetScan | None

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's labels in the order of their numbers; empty for a language model."""
        return self.plan.labels

    def with_packing(self, packing: PackingChoice) -> Self:
        """Return the request with the packing that was settled when the model was loaded."""
        return replace(self, plan=replace(self.plan, packing=packing))


@dataclass(frozen=True, kw_only=True)
class AdapterRequest(Request):
    """A run that ends with an adapter."""

    search: str | None = None
    """The search that this run is a trial of, or whose best trial it is; for the manifest."""
    parent: str | None = None
    """The adapter that the training starts from, as NAME@v2; for the manifest."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(AdapterRequest):
    """A fine-tuning."""

    def for_federation(self, federation: FederationSection, partition: str) -> FederationRequest:
        """Return the request to train the same on the clients of a partition, given by digest."""
        own = {field.name: getattr(self, field.name) for field in fields(AdapterRequest)}
        return FederationRequest(**own, federation=federation, partition=partition)

    def for_evaluation(
        self, adapters: tuple[str, ...], previous_eval: HeldOutRows | None
    ) -> EvaluationRequest:
        """Return the request to evaluate committed adapters on this run's held-out rows."""
        own = {field.name: getattr(self, field.name) for field in fields(Request)}
        return EvaluationRequest(**own, adapters=adapters, previous_eval=previous_eval)


@dataclass(frozen=True, kw_only=True)
class FederationRequest(AdapterRequest):
    """A training by many clients, each on rows of its own."""

    federation: FederationSection
    partition: str
    """Digest of the partition in the run's folder."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest(Request):
    """An evaluation of committed adapters; nothing is trained."""

    adapters: tuple[str, ...]
    """As NAME@v2."""
    previous_eval: HeldOutRows | None
    """Rows to evaluate them on beside the spec's own."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The adapters and the digests of the rows: equal inputs have equal results."""
        held_out, previous = self.eval_data, self.previous_eval
        fraction = self.spec.data.eval_fraction
        return {
            "adapters": list(self.adapters),
            HELD_OUT: held_out.sha256 if held_out else [self.train_data.sha256, fraction],
            PREVIOUS_EVAL: previous
            and [previous.scan.sha256, previous.file_count, previous.fraction],
        }


WorkerRequest = TrainingRequest | EvaluationRequest
"""The runs that workers execute; a federation's server runs in the driver."""


@dataclass(frozen=True)
class RunAttempt:
    """An attempt of a run, as its driver hands it to workers, whoever starts them."""

    request: WorkerRequest
    number: int
    make_hooks: HooksFactory | None = None
    start: PhaseStart | None = None
    """Where the phases of the run's start are; without it none are recorded."""

    def begin_again(self) -> RunAttempt:
        """Return the same for workers that replace lost ones: they have a start of their own."""
        return replace(self, start=PhaseStart.begin(self.number) if self.start else None)
