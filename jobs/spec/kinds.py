"""The kinds of runs in one table: section, spec file, job module, workers and tokens. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from jobs.errors import Fault, InputError
from jobs.spec.schema import FederatedSpec, RetrainSpec, RunSpec, SearchSpec

Kind = Literal["finetune", "search", "retrain", "federate"]
SpecT = TypeVar("SpecT", bound=RunSpec)


@dataclass(frozen=True)
class RunKind:
    """A kind of run: its section, its files and its job."""

    name: Kind
    noun: str
    """The kind in a sentence: "a search"."""
    section: str | None
    """The section of the spec that makes a run this kind."""
    spec_class: type[RunSpec]
    spec_file: str
    """The file in the run's folder that holds the spec as it was submitted."""
    module: str
    """The job that runs it: `python -m MODULE --spec SPEC`."""


KINDS: Mapping[Kind, RunKind] = {
    kind.name: kind
    for kind in (
        RunKind("search", "a search", "search", SearchSpec, "search.yaml", "jobs.search"),
        RunKind("retrain", "a retraining", "retrain", RetrainSpec, "retrain.yaml", "jobs.retrain"),
        RunKind(
            "federate", "a federation", "federation", FederatedSpec, "federation.yaml",
            "jobs.federate"),
        RunKind("finetune", "a fine-tune", None, RunSpec, "spec.yaml", "jobs.finetune"),
    )
}  # fmt: skip
"""Kinds in the order in which they are recognised: a search of federations is a search."""


def find_kind(values: Mapping[str, Any]) -> RunKind:
    """Return the kind of a spec given as plain values."""
    return next(kind for kind in KINDS.values() if kind.section is None or kind.section in values)


def get_kind(spec: RunSpec) -> RunKind:
    """Return the kind of a validated spec."""
    return next(
        kind
        for kind in KINDS.values()
        if kind.section is None or getattr(spec, kind.section) is not None
    )


def find_kind_of_files(names: Collection[str]) -> RunKind:
    """Return the kind of a run from the names of the files in its folder."""
    kinds = (kind for kind in KINDS.values() if kind.spec_file in names)
    return next(kinds, KINDS["finetune"])


def require_kind(spec: RunSpec, spec_class: type[SpecT]) -> SpecT:
    """Return the spec as one of the given kind. Raise InputError if it is of another kind."""
    actual = get_kind(spec)
    expected = next(kind for kind in KINDS.values() if kind.spec_class is spec_class)
    if actual is expected and isinstance(spec, spec_class):
        return spec
    section = str(expected.section or actual.section)
    problem = f"{'missing' if expected.section else 'present'}: this is the spec of {actual.noun}"
    remedy = f"Run `python -m {actual.module}`, or {{}} the section {section}."
    raise InputError(
        [Fault(section, problem, remedy.format("add" if expected.section else "remove"))]
    )


def count_workers(spec: RunSpec) -> int:
    """Count the most workers that a run has at once."""
    workers = spec.cluster.workers
    most = workers if isinstance(workers, int) else max(workers.min, workers.max)
    return most * (spec.search.max_concurrent or 1) if spec.search else most


def count_cpus(spec: RunSpec) -> int:
    """Count the most CPUs that the workers of a run have at once."""
    return spec.cluster.cpus_per_worker * count_workers(spec)


def count_gpus(spec: RunSpec) -> int:
    """Count the most GPUs that the workers of a run have at once."""
    return spec.cluster.gpus_per_worker * count_workers(spec)


def count_tokens(spec: RunSpec) -> int | None:
    """Count the most tokens that a run can train on; None if only the rows can tell."""
    if spec.train.steps is None:
        return None
    sides = 2 if spec.target_kind == "completion" else 1
    tokens = spec.train.steps * spec.train.batch_size * spec.data.max_length * sides
    if spec.federation:
        # The steps are those of one client, and every round has several.
        tokens *= spec.federation.clients_per_round
    if spec.search:
        return None if spec.search.samples is None else tokens * spec.search.samples
    return tokens
