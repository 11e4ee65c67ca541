"""What is asked of the service, checked: a spec of a kind, as the paper that its job will read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from jobs.data.files import HUB_ID
from jobs.errors import Fault, InputError
from jobs.federate.door import Federated, validate_federated
from jobs.retrain.door import Retrain, validate_retrain
from jobs.search.door import Search, validate_search
from jobs.spec import Spec
from jobs.spec_file import dump_spec, validate_spec
from orchestrator.cluster.entrypoint import is_word
from orchestrator.registry.values import Kind
from orchestrator.service.config import whole_store

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Asked:
    """One run to be, and everything of it that the service has to know."""

    kind: Kind
    name: str
    store: str
    """Whole, inside one of the service's stores."""
    text: str
    """The spec that its job reads."""
    workers: int
    tokens: int | None
    """The most that it can train; None where only the rows tell."""
    data: str
    """Where its training rows lie."""
    spec: Spec

    @property
    def digest(self) -> str:
        """Of the paper."""
        return sha256(self.text.encode()).hexdigest()


def asked_for(kind: Kind, raw: Mapping[str, Any], stores: Sequence[str]) -> Asked:
    """The run that a spec of plain values asks for. Raises InputError with all its faults."""
    if kind not in _READERS:
        problem = f"{kind} is not available yet"
        raise InputError([Fault("kind", problem, f"Use {' or '.join(_READERS)}.")])
    spec, text, workers, trials = _READERS[kind]({**raw, "store": _store(raw, stores)})
    if faults := _no_places(spec):
        raise InputError(faults)
    tokens = _tokens(spec)
    return Asked(
        kind=kind,
        name=spec.name,
        store=spec.store,
        text=text,
        workers=workers,
        tokens=None if tokens is None or trials is None else tokens * trials,
        data=spec.data.train,
        spec=spec,
    )


Read = tuple[Spec, str, int, int | None]
"""The spec, its text, the workers at once, and how many trainings of its steps it is."""


def _finetune(raw: Mapping[str, Any]) -> Read:
    spec = validate_spec(raw)
    return spec, dump_spec(spec), _workers(spec), 1


def _search(raw: Mapping[str, Any]) -> Read:
    found: Search = validate_search(raw)
    at_once, trainings = found.section.max_concurrent or 1, found.section.samples
    if trainings is not None and found.federation is not None:
        trainings *= found.federation.clients_per_round
    return found.spec, found.text(), _workers(found.spec) * at_once, trainings


def _retrain(raw: Mapping[str, Any]) -> Read:
    found: Retrain = validate_retrain(raw)
    return found.spec, found.text(), _workers(found.spec), 1


def _federate(raw: Mapping[str, Any]) -> Read:
    found: Federated = validate_federated(raw)
    # Its spec counts the steps of one client; as many as are drawn take them in each round.
    return found.spec, found.text(), _workers(found.spec), found.section.clients_per_round


_READERS = {"finetune": _finetune, "search": _search, "retrain": _retrain, "federate": _federate}


def _workers(spec: Spec) -> int:
    asked = spec.cluster.workers
    return asked if isinstance(asked, int) else asked.max


def _tokens(spec: Spec) -> int | None:
    train = spec.train
    return None if train.steps is None else train.steps * train.batch_size * spec.data.max_length


def _store(raw: Mapping[str, Any], stores: Sequence[str]) -> str:
    """The store that the spec names, whole; the service's first where it names none."""
    named = raw.get("store")
    if named is None:
        return stores[0]
    if not isinstance(named, str):
        raise InputError([Fault("store", "not a text", f"Use {stores[0]} or below it.")])
    whole = whole_store(named)
    if not any(f"{whole}/".startswith(f"{one}/") for one in stores) or not is_word(whole):
        problem = f"{named[:100]!a} is none of this service's stores"
        raise InputError([Fault("store", problem, f"Use {', '.join(stores)} or below them.")])
    return whole


def _no_places(spec: Spec) -> list[Fault]:
    """Paths that no machine has, or that would mean another place on every one."""
    named = {
        "model.path": spec.model.path,
        "data.train": spec.data.train,
        "data.eval": spec.data.eval,
    }
    unprintable = [
        Fault(key, f"{path[:100]!a} holds what can't be printed", "Take it out of the path.")
        for key, path in named.items()
        if path and not path.isprintable()
    ]
    return unprintable + [
        Fault(key, f"{path[:100]!a} is relative to nothing here", "Name the whole path.")
        for key, path in named.items()
        if path and not (path.startswith("/") or _URL.match(path) or HUB_ID.fullmatch(path))
    ]
