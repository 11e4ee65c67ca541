"""What is asked of the service, checked: a spec of a kind, as the paper that its job will read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from jobs.errors import Fault, InputError
from jobs.federation.load_federation import FederatedSpec, validate_federated
from jobs.inspect.datasets.files import HUB_ID
from jobs.retrain.load_retrain import RetrainSpec, validate_retrain
from jobs.search.load_search import SearchSpec, validate_search
from jobs.spec.load import dump_spec, validate_spec
from jobs.spec.schema import RunSpec
from orchestrator.cluster.entrypoint import is_safe_argument
from orchestrator.control.config import normalize_store_url
from orchestrator.registry.values import Kind

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class ResolvedRun:
    """One run to be, and everything of it that the service has to know."""

    kind: Kind
    name: str
    store: str
    """Whole, inside one of the service's stores."""
    spec_text: str
    """The spec that its job reads."""
    workers: int
    tokens: int | None
    """The most that it can train; None where only the rows tell."""
    data: str
    """Where its training rows lie."""
    spec: RunSpec

    @property
    def digest(self) -> str:
        """Of the paper."""
        return sha256(self.spec_text.encode()).hexdigest()


def resolve_run(kind: Kind, values: Mapping[str, Any], stores: Sequence[str]) -> ResolvedRun:
    """The run that a spec of plain values asks for. Raises InputError with all its faults."""
    if kind not in _READERS:
        problem = f"{kind} is not available yet"
        raise InputError([Fault("kind", problem, f"Use {' or '.join(_READERS)}.")])
    spec, text, workers, trials = _READERS[kind](
        {**values, "store": _resolve_store(values, stores)}
    )
    if faults := _check_paths(spec):
        raise InputError(faults)
    tokens = _count_tokens(spec)
    return ResolvedRun(
        kind=kind,
        name=spec.name,
        store=spec.store,
        spec_text=text,
        workers=workers,
        tokens=None if tokens is None or trials is None else tokens * trials,
        data=spec.data.train,
        spec=spec,
    )


ResolvedSpec = tuple[RunSpec, str, int, int | None]
"""The spec, its text, the workers at once, and how many trainings of its steps it is."""


def _read_finetune(raw: Mapping[str, Any]) -> ResolvedSpec:
    spec = validate_spec(raw)
    return spec, dump_spec(spec), _count_workers(spec), 1


def _read_search(raw: Mapping[str, Any]) -> ResolvedSpec:
    search: SearchSpec = validate_search(raw)
    concurrent_trials, trainings = search.section.max_concurrent or 1, search.section.samples
    if trainings is not None and search.federation is not None:
        trainings *= search.federation.clients_per_round
    return search.spec, search.to_yaml(), _count_workers(search.spec) * concurrent_trials, trainings


def _read_retrain(raw: Mapping[str, Any]) -> ResolvedSpec:
    retrain: RetrainSpec = validate_retrain(raw)
    return retrain.spec, retrain.to_yaml(), _count_workers(retrain.spec), 1


def _read_federate(raw: Mapping[str, Any]) -> ResolvedSpec:
    federated: FederatedSpec = validate_federated(raw)
    # Its spec counts the steps of one client; as many as are drawn take them in each round.
    return (
        federated.spec,
        federated.to_yaml(),
        _count_workers(federated.spec),
        federated.section.clients_per_round,
    )


_READERS = {
    "finetune": _read_finetune,
    "search": _read_search,
    "retrain": _read_retrain,
    "federate": _read_federate,
}


def _count_workers(spec: RunSpec) -> int:
    workers = spec.cluster.workers
    return workers if isinstance(workers, int) else workers.max


def _count_tokens(spec: RunSpec) -> int | None:
    train = spec.train
    return None if train.steps is None else train.steps * train.batch_size * spec.data.max_length


def _resolve_store(raw: Mapping[str, Any], stores: Sequence[str]) -> str:
    """The store that the spec names, whole; the service's first where it names none."""
    requested = raw.get("store")
    if requested is None:
        return stores[0]
    if not isinstance(requested, str):
        raise InputError([Fault("store", "not a text", f"Use {stores[0]} or below it.")])
    normalized = normalize_store_url(requested)
    if not any(
        f"{normalized}/".startswith(f"{allowed}/") for allowed in stores
    ) or not is_safe_argument(normalized):
        problem = f"{requested[:100]!a} is none of this service's stores"
        raise InputError([Fault("store", problem, f"Use {', '.join(stores)} or below them.")])
    return normalized


def _check_paths(spec: RunSpec) -> list[Fault]:
    """Paths that no machine has, or that would mean another place on every one."""
    paths = {
        "model.path": spec.model.path,
        "data.train": spec.data.train,
        "data.eval": spec.data.eval,
    }
    unprintable = [
        Fault(key, f"{path[:100]!a} holds what can't be printed", "Take it out of the path.")
        for key, path in paths.items()
        if path and not path.isprintable()
    ]
    return unprintable + [
        Fault(key, f"{path[:100]!a} is relative to nothing here", "Name the whole path.")
        for key, path in paths.items()
        if path and not (path.startswith("/") or _URL.match(path) or HUB_ID.fullmatch(path))
    ]
